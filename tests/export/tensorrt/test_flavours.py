import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from slmc.artefact import Artefact
from slmc.commands import diagnosis as doctor
from slmc.errors import MissingError
from slmc.export.config import ExportConfig, TensorrtConfig
from slmc.export.export import export
from slmc.export.tensorrt import flavours
from slmc.export.tensorrt.flavours import FLAVOURS, Driver, Trial

FULL, RTX = FLAVOURS["tensorrt"], FLAVOURS["tensorrt-rtx"]
Pretend = Callable[[str], None]


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    flavours.try_flavour.cache_clear()
    yield
    flavours.try_flavour.cache_clear()


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flavours, "driver", lambda: Driver(problem="no driver (libcuda.so.1)"))
    monkeypatch.setattr(doctor, "driver", flavours.driver)


@pytest.fixture
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pretend:
    """Install a short module named ``tensorrt``."""

    def install(code: str) -> None:
        (tmp_path / "tensorrt.py").write_text(code)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return install


WHOLE = """
__version__ = "11.4"
class Logger:
    INTERNAL_ERROR = 0
    def __init__(self, severity): ...
class Builder:
    def __init__(self, logger):
        self.logger = logger
"""


@pytest.mark.parametrize(
    ("code", "trial"),
    [
        (WHOLE, Trial(version="11.4", builds=True)),
        (
            "import ctypes; ctypes.CDLL('libnvonnxparser.so.11')",
            Trial(
                problem="OSError: libnvonnxparser.so.11: cannot open shared object file: No such "
                "file or directory"
            ),
        ),
        (
            WHOLE + "        raise TypeError('pybind11: factory function returned nullptr')\n",
            Trial("11.4", problem="TypeError: pybind11: factory function returned nullptr"),
        ),
        (
            "import os; os.abort()",
            Trial(problem="importing it ends the process with -6"),
        ),
        (
            "print('{'); import os; os._exit(0)",
            Trial(problem="importing it ends the process with 0"),
        ),
    ],
)
def test_a_broken_installation_is_reported_instead_of_crashing(
    code: str, trial: Trial, pretend: Pretend
) -> None:
    pretend(code)
    assert flavours.try_flavour(FULL) == trial


@pytest.mark.usefixtures("no_gpu")
def test_the_doctor_reports_what_each_flavour_can_do(
    pretend: Pretend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def findings() -> dict[str, doctor.Finding]:
        return {one.what: one for one in doctor.examine()}

    monkeypatch.setattr(flavours, "find_spec", lambda _: None)
    finding = findings()["TensorRT (tensorrt-rtx)"]
    assert finding.found == "not installed; `pip install 'slmc[tensorrt-rtx]'`"
    assert finding.state == "without"
    monkeypatch.undo()
    flavours.try_flavour.cache_clear()
    pretend("import os; os.abort()")
    finding = findings()["TensorRT (tensorrt)"]
    assert finding.found == (
        "importing it ends the process with -6; `pip install 'slmc[tensorrt]'`"
    )


@pytest.mark.parametrize(
    ("gpu", "flavour", "status"),
    [
        (None, FULL, "11.4: cannot build plans, cannot run them: no driver"),
        (None, RTX, "11.4: can build plans, cannot run them: no driver"),
        ((9, 0), FULL, "11.4: can build plans, can run them"),
        (
            (9, 0),
            RTX,
            "11.4: can build plans, cannot run them: no kernels for compute capability 9.0",
        ),
        (
            (7, 5),
            RTX,
            "11.4: can build plans, cannot run them: no kernels for compute capability 7.5",
        ),
        ((8, 9), RTX, "11.4: can build plans, can run them"),
        ((12, 0), RTX, "11.4: can build plans, can run them"),
    ],
)
def test_which_gpu_a_flavour_is_for(
    gpu: tuple[int, int] | None, flavour: Any, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = None if gpu else "no driver"
    monkeypatch.setattr(doctor, "driver", lambda: Driver(gpu, problem))
    monkeypatch.setattr(doctor, "try_flavour", lambda _: Trial("11.4", builds=True))
    states = {one.what: one for one in doctor.examine()}
    assert states[f"TensorRT ({flavour.name})"].found == status


def test_the_command_that_installs_it_is_shown_whole() -> None:
    """Brackets are markup in the library that prints the table."""
    done = subprocess.run(
        [sys.executable, "-m", "slmc", "doctor"],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
    )
    for flavour in FLAVOURS.values():
        if flavours.try_flavour(flavour).version is None:
            assert f"`pip install 'slmc[{flavour.name}]'`" in done.stdout


def config(**settings: Any) -> ExportConfig:
    return ExportConfig(formats=("tensorrt",), top_k=10, tensorrt=TensorrtConfig(**settings))


@pytest.mark.parametrize("name", sorted(FLAVOURS))
@pytest.mark.usefixtures("no_gpu")
def test_without_a_flavour(
    name: str, dataset: Artefact, model: Artefact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flavours, "find_spec", lambda _: None)
    with pytest.raises(MissingError) as caught:
        inputs = {"data": dataset, "model": model}
        export(config(flavour=name), inputs, tmp_path / "engine")
    module = name.replace("-", "_")
    assert str(caught.value) == f"{name}: {module} cannot be used: not installed."
    assert caught.value.remedy == f"Install it with `pip install 'slmc[{name}]'`."
    assert caught.value.exit_code == 4 and not (tmp_path / "engine").exists()


@pytest.mark.usefixtures("no_gpu")
def test_full_tensorrt_without_a_gpu(pretend: Pretend) -> None:
    pretend(WHOLE + "        raise TypeError('nullptr')\n")
    for load in (flavours.module_for_building, flavours.module_for_running):
        with pytest.raises(MissingError) as caught:
            load(FULL)
        assert str(caught.value) == (
            "tensorrt: a plan is built on the GPU that runs it; no driver (libcuda.so.1)."
            if load is flavours.module_for_building
            else "tensorrt: a plan runs on a GPU; no driver (libcuda.so.1)."
        )


def test_a_plan_depends_on_gpu_and_version(monkeypatch: pytest.MonkeyPatch) -> None:
    assert flavours.fingerprint(ExportConfig()) == {}
    monkeypatch.setattr(flavours, "installed_version", lambda _: "10.13")
    monkeypatch.setattr(flavours, "driver", lambda: Driver((9, 0)))
    assert flavours.fingerprint(config()) == {"tensorrt": "10.13", "gpu": "9.0"}
    rtx = flavours.fingerprint(config(flavour="tensorrt-rtx"))
    assert rtx == {"tensorrt": "10.13", "gpu": "none"}


def test_the_extra_of_the_flavour_is_required() -> None:
    assert ExportConfig().extras() == {}
    assert config().extras() == {"tensorrt": "tensorrt"}
    assert config(flavour="tensorrt-rtx").extras() == {"tensorrt_rtx": "tensorrt-rtx"}


def test_trying_a_flavour_imports_nothing() -> None:
    code = (
        "import json, sys; from slmc.export.tensorrt import flavours\n"
        "flavours.driver(); [flavours.try_flavour(one) for one in flavours.FLAVOURS.values()]\n"
        "print(json.dumps(sorted({'torch', 'tensorrt', 'tensorrt_rtx'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
