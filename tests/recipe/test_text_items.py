"""Recipes whose items have texts."""

from pathlib import Path

import pytest
import text_encoders
from recipe_files import TEACH, faults, read

from slmc.distill.config import TeachConfig
from slmc.errors import UsageError
from slmc.pipeline.preflight import check_backbones
from slmc.recipe import load, resolved_yaml

ITEMS = "items: {source: items.csv, columns: [title, brand]}"
TOP = f"version: 1\nname: x\ndata: {{source: a.csv, {ITEMS}}}\nsteps:\n"
SASREC = "  - sasrec: {item_embeddings: hybrid, encoder: ./encoder}\n"


def test_sasrec_takes_texts(file: Path) -> None:
    made = read(file, TOP + SASREC + TEACH)
    config = made.step("sasrec").config.model_dump()
    assert (config["item_embeddings"], config["encoder"]) == ("hybrid", "./encoder")
    assert made.data.items is not None and made.data.items.columns == ("title", "brand")


def test_a_smoke_run_has_no_encoder(file: Path) -> None:
    config = read(file, TOP + SASREC + TEACH, smoke=True).step("sasrec").config.model_dump()
    assert (config["item_embeddings"], config["encoder"]) == ("ids", None)


def test_texts_that_the_data_does_not_have(file: Path) -> None:
    text = (TOP + SASREC + TEACH).replace(f", {ITEMS}", "")
    (fault,) = faults(file, text)
    assert fault == (
        "./r.yaml:5: sasrec.item_embeddings: hybrid: the data has no texts of items. "
        "Set data.items."
    )


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("data.items.template={colour}", "template names {colour}, which is not in columns"),
        ("data.items.columns=[title, title]", "columns names one column twice"),
        ("sasrec.encoder=", "item_embeddings: hybrid needs an encoder"),
    ],
)
def test_settings_that_cannot_be(file: Path, change: str, what: str) -> None:
    (fault,) = faults(file, TOP + SASREC + TEACH, change)
    assert what in fault


def test_items_of_another_log_are_left_out(file: Path) -> None:
    text = (TOP + TEACH).replace("{source: items.csv", "{of: a.csv, source: items.csv")
    assert read(file, text).data.items is not None
    assert read(file, text, "data.source=b.csv").data.items is None


def test_a_file_of_new_items_is_sought_in_the_folder_of_the_recipe(tmp_path: Path) -> None:
    folder = tmp_path / "sub"
    folder.mkdir()
    text = TOP + SASREC + TEACH + "  - export: {items: new.csv}\n"
    (folder / "r.yaml").write_text(text)
    config = load(str(folder / "r.yaml")).step("export").config.model_dump()
    assert Path(config["items"]) == folder / "new.csv"


TEXT_TEACHER = (
    "  - teach: {backbone: ./llm, layers: 4, item_embeddings: hybrid, id_dropout: 0.1}\n"
    "  - distill: {layers: 2, blocks: 2}\n"
)
TWO = (
    "  - sasrec: {id: ids}\n"
    "  - sasrec: {id: text, item_embeddings: hybrid, encoder: ./encoder, encoder_layer: auto}\n"
)


def test_a_teacher_takes_texts_and_encodes_them_itself(file: Path) -> None:
    made = read(file, TOP + TEXT_TEACHER)
    config = made.step("teach").config
    assert isinstance(config, TeachConfig)
    assert config.text_encoder == ("./llm", None) and config.encoder_layer == "auto"
    assert made.has_texts("teach") and made.has_texts("distill") and not made.has_texts("sasrec")
    named = read(file, TOP + TEXT_TEACHER, "teach.encoder=./other", "teach.encoder_layer=3")
    config = named.step("teach").config
    assert isinstance(config, TeachConfig)
    assert config.text_encoder == ("./other", None) and config.encoder_layer == 3


def test_a_smoke_run_has_no_texts_and_no_new_items(file: Path) -> None:
    made = read(file, TOP + TWO + TEXT_TEACHER + "  - export: {items: new.csv}\n", smoke=True)
    for name in ("ids", "text", "teach"):
        config = made.step(name).config.model_dump()
        assert config["encoder"] is None and config["id_dropout"] == 0
        assert config["item_embeddings"] in ("ids", "sasrec")
    assert made.step("export").config.model_dump()["items"] is None


def test_the_last_of_two_sasrecs_is_the_default(file: Path, tmp_path: Path) -> None:
    made = read(file, TOP + TWO + TEACH)
    assert made.step("baselines").inputs["sasrec"] == made.step("teach").inputs["sasrec"] == "text"
    assert made.has_texts("teach")
    measured = [step.id for step in made.steps if made.is_measured(step)]
    assert measured == ["ids", "teach"]
    file.write_text(resolved_yaml(made, tmp_path))
    assert load("./r.yaml", env={}).steps == made.steps


def test_another_of_two_sasrecs_can_be_named(file: Path) -> None:
    named = TEACH.replace("{", "{sasrec: ids, ", 1)
    made = read(file, TOP + TWO + "  - baselines: {sasrec: ids}\n" + named)
    assert made.step("baselines").inputs["sasrec"] == made.step("teach").inputs["sasrec"] == "ids"
    assert made.baseline_sasrec == "ids" and not made.has_texts("teach")
    assert [step.id for step in made.steps if made.is_measured(step)] == ["text", "teach"]


def test_two_sasrecs_need_ids(file: Path) -> None:
    (fault,) = faults(file, TOP + "  - sasrec:\n  - sasrec: {dim: 32}\n" + TEACH)
    assert fault == (
        "./r.yaml:6: sasrec: two steps have the id 'sasrec' (the first in line 5); set `id` for "
        "one of them"
    )


def test_a_teacher_without_texts_in_the_data(file: Path) -> None:
    (fault,) = faults(file, (TOP + TEXT_TEACHER).replace(f", {ITEMS}", ""))
    assert fault == (
        "./r.yaml:5: teach.item_embeddings: hybrid: the data has no texts of items. Set data.items."
    )


NEW = "  - export: {items: new.csv}\n"
NOT_FROM_TEXTS = (
    "export.items: {}: the item table of {} does not come from texts. Leave items out, or set "
    "item_embeddings: hybrid in the step that makes the table."
)
FURTHER = "export.items: {}: the item table of {} is trained further after it came from texts. {}"


@pytest.mark.parametrize(
    ("steps", "what"),
    [
        (TEACH, NOT_FROM_TEXTS.format("{}", "'teach'")),
        (SASREC + TEACH.replace("layers", "item_embeddings: random, freeze_items: false, layers"),
         NOT_FROM_TEXTS.format("{}", "'teach'")),
        (SASREC + TEACH.replace("layers", "freeze_items: false, layers"),
         FURTHER.format("{}", "'teach'", "Set teach.freeze_items to true.")),
        (TEXT_TEACHER.replace("id_dropout: 0.1", "freeze_items: false"),
         FURTHER.format("{}", "'distill'", "Set freeze_items of its teacher to true.")),
        (SASREC + TEACH + "  - distill: {student: sasrec, losses: {logits: 1.0}}\n",
         FURTHER.format("{}", "'distill'", "Export 'sasrec' instead, or leave items out.")),
    ],
)  # fmt: skip
def test_new_items_need_a_table_that_still_is_that_of_the_texts(
    steps: str, what: str, file: Path
) -> None:
    (fault,) = faults(file, TOP + steps + NEW)
    assert fault.split(": ", 1)[1] == what.format("new.csv")


@pytest.mark.parametrize(
    "steps",
    [
        SASREC + TEACH,
        TEXT_TEACHER,
        TEXT_TEACHER.replace("blocks: 2", "blocks: 2, item_dim: 8"),
        TEXT_TEACHER
        + "  - prune: {ffn: 0.5}\n  - distill: {id: recover, student: prune, blocks: 2}\n",
    ],
)
def test_new_items_get_into_every_later_model(steps: str, file: Path) -> None:
    assert read(file, TOP + steps + NEW).step("export")


def test_a_random_backbone_cannot_encode(file: Path) -> None:
    text = TOP + TEXT_TEACHER.replace("./llm", "'random://llama'")
    (fault,) = faults(file, text)
    assert fault == (
        "./r.yaml:5: teach: item_embeddings: hybrid needs an encoder here, because a random "
        "backbone has no tokenizer"
    )
    assert read(file, text, "teach.encoder=./encoder").step("teach")


def test_an_encoder_that_cannot_encode_ends_the_run_before_its_first_step(file: Path) -> None:
    llm = text_encoders.save(Path("llm"), "llama", layers=4)
    made = read(file, TOP + TEXT_TEACHER, "teach.encoder_layer=9")
    with pytest.raises(UsageError) as caught:
        check_backbones(made, made.steps)
    assert caught.value.what == "teach: encoder ./llm: it has 4 layers, so there is no layer 9."
    for tokenizer in llm.glob("tokenizer*"):
        tokenizer.unlink()
    made = read(file, TOP + TEXT_TEACHER)
    with pytest.raises(UsageError) as caught:
        check_backbones(made, made.steps)
    assert caught.value.what == "teach: encoder ./llm: it has no tokenizer."
