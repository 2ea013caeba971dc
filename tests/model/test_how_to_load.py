"""Config and card of a saved model show how to load it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import slmc
from slmc.artefact import Artefact
from slmc.model.loading import load_model
from slmc.training.config import SasrecConfig
from slmc.training.pretrain import sasrec as train


@pytest.fixture(scope="module")
def saved(dataset: Artefact, tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    """A SASRec that is trained for one epoch."""
    config = SasrecConfig(epochs=1, dim=8, dtype="fp32")
    return train(config, {"data": dataset}, tmp_path_factory.mktemp("saved") / "sasrec")


def test_config_and_card_name_the_import(saved: Artefact) -> None:
    config = json.loads(saved.file("config.json").read_text())
    assert config["how_to_load"] == (
        "pip install slmc; in Python `import slmc.model.loading`, then "
        "`transformers.AutoModel.from_pretrained`"
    )
    first = saved.file("README.md").read_text().split("\n\n")[1]
    assert "`import slmc.model.loading`" in first


def test_the_code_of_the_card_loads_the_model(saved: Artefact) -> None:
    code = saved.file("README.md").read_text().split("```python\n", 1)[1].split("```", 1)[0]
    root = str(Path(slmc.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", code + "print(tuple(scores.shape))"],
        cwd=saved.path,
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("(1, ")


def test_the_error_of_transformers_names_the_import(saved: Artefact) -> None:
    """In a process that has never imported slmc."""
    code = (
        "import sys, transformers\n"
        f"try: transformers.AutoModel.from_pretrained({str(saved.path)!r})\n"
        "except ValueError as error: print(error, 'slmc' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "has model type `slmc_sasrec (first: import slmc.model.loading)`" in done.stdout
    assert done.stdout.strip().endswith("False")


def test_models_of_the_former_type_load(saved: Artefact, tmp_path: Path) -> None:
    shutil.copytree(saved.path, tmp_path / "old")
    file = tmp_path / "old/config.json"
    config = json.loads(file.read_text())
    assert config["model_type"] == "slmc_sasrec (first: import slmc.model.loading)"
    file.write_text(json.dumps(config | {"model_type": "slmc_sasrec"}))
    former = load_model(Artefact(tmp_path / "old", saved.manifest))
    for name, tensor in load_model(saved).state_dict().items():
        assert torch.equal(former.state_dict()[name], tensor)


def test_a_missing_function_names_an_existing_one() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'nothing'|slmc has no 'nothing'"):
        _ = slmc.nothing
    code = "import slmc\ntry: slmc.recommend('engine', [1])\nexcept AttributeError as e: print(e)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == (
        "slmc has no 'recommend' to call: `slmc.load(path).recommend(history)` ranks the "
        "catalogue for one history.\n"
    )
