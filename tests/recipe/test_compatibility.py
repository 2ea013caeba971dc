"""What a recipe asks of an export that its model cannot have is said before the first step."""

from pathlib import Path

import pytest
from recipe_files import TEACH, TOP, faults, read

from slmc.commands.cli import call
from slmc.export.config import ExportConfig
from slmc.recipe import load

FOUR = "quantize: {bits: 4, group_size: 64}"
EIGHT = "quantize: {bits: 8}"
MIXED = "quantize: {bits: 8, assign: {'*.down_proj': 4}}"
TENSORRT = "formats: [tensorrt]"
NO_CODES = "export.precision: int4: {} has no 4-bit codes. Quantize it to 4 bits first, or export "
NO_CODES += "it as int8 or fp32."
TWICE = "export.precision: {}: 'quantize' is already quantized ({}); quantizing its codes again "
TWICE += "makes the ranking worse. Leave precision out, or export the float model."
LLM = "'sasrec' is a SASRec, but {} needs a recommender on an LLM. Export it directly."
OPSET = "export.precision: {}: standard operators for 4-bit codes need opset 21, not 20. "
OPSET += "Raise opset to 21."
TABLE = "export.table: {}: the item table of 'quantize' is already quantized. Leave table out, or "
TABLE += "export the float model."


def recipe(steps: list[str]) -> str:
    return TOP + TEACH + "".join(f"  - {step}\n" for step in steps)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (["export: {precision: int4}"], NO_CODES.format("'teach'")),
        ([EIGHT, "export: {precision: int4}"], NO_CODES.format("'quantize'")),
        ([FOUR, "export: {model: teach, precision: int4}"], NO_CODES.format("'teach'")),
        (
            ["quantize: {assign: {'*': 8}}", "export: {precision: int4}"],
            NO_CODES.format("'quantize'"),
        ),
        (
            [
                FOUR,
                "distill: {student: quantize, blocks: 2, layers: 4}",
                "export: {precision: int4}",
            ],
            NO_CODES.format("'distill'"),
        ),
        ([FOUR, "export: {precision: int8}"], TWICE.format("int8", "int4")),
        ([FOUR, "export: {precision: int8-accurate}"], TWICE.format("int8-accurate", "int4")),
        ([EIGHT, "export: {precision: int8}"], TWICE.format("int8", "int8-accurate")),
        ([MIXED, "export: {precision: int8}"], TWICE.format("int8", "int4")),
        ([FOUR, "export: {layout: padded, opset: 20}"], OPSET.format("int4")),
        (["quantize: {group_size: 8}", "export: {opset: 20}"], OPSET.format("int4")),
        (
            [
                "quantize: {item_table: int4, assign: {'*': skip}}",
                "export: {layout: padded, opset: 20}",
            ],
            "export.opset: 20: standard operators for the 4-bit item table of 'quantize' need 21. "
            "Raise opset to 21.",
        ),
        (
            ["export: {table: int8+rescore, layout: padded}"],
            "export.table: int8+rescore: no standard operator multiplies with a quantized item "
            "table. Use layout packed, or table fp32.",
        ),
        (
            ["quantize: {item_table: int8}", "export: {table: int8+rescore}"],
            TABLE.format("int8+rescore"),
        ),
        (["quantize: {item_table: int4}", "export: {table: fp32}"], TABLE.format("fp32")),
        (
            ["export: {model: sasrec, precision: int4}"],
            "export.precision: int4: 'sasrec' has no 4-bit codes. Export it as int8 or fp32.",
        ),
        (
            [f"export: {{model: sasrec, {TENSORRT}, tensorrt: {{precision: int4}}}}"],
            "export.tensorrt.precision: int4: 'sasrec' has no 4-bit codes. Use bf16.",
        ),
        (["prune: {model: sasrec, layers: 1}"], "prune.model: " + LLM.format("prune")),
        (["quantize: {model: sasrec}"], "quantize.model: " + LLM.format("quantize")),
        (
            ["distill: {teacher: sasrec, layers: 2, blocks: 2, losses: {logits: 1}}"],
            "distill.backbone: the teacher 'sasrec' has no LLM for the student. Name one.",
        ),
        (
            [
                "distill: {teachers: [sasrec, teach], backbone: 'random://llama', layers: 2, "
                "blocks: 2, losses: {logits: 1, norm: 1}}"
            ],
            "distill.losses.norm: the teacher 'sasrec' is a SASRec, without blocks of an LLM. Use "
            "losses.logits or ranking.",
        ),
        (
            ["distill: {student: sasrec, blocks: 2, losses: {logits: 1, supervise: 1}}"],
            "distill.losses.supervise: the student 'sasrec' is a SASRec, without blocks of an LLM. "
            "Use losses.logits or ranking.",
        ),
        (
            ["distill: {student: sasrec, losses: {logits: 1}, item_dim: 8}"],
            "distill.item_dim: the student 'sasrec' is a SASRec; its layers have that width. Leave "
            "it out.",
        ),
        (
            ["distill: {layers: 2, blocks: 2, losses: {items: {from: 0, to: 1, over: 0.1}}}"],
            "distill.losses.items: the item table is frozen, as that of 'teach'. Set item_dim.",
        ),
        (
            ["distill: {layers: 2, blocks: 2}", "prune: {exit_block: 1}"],
            "prune.exit_block: 'distill' has no heads of its blocks. Distil it with keep_heads: "
            "true.",
        ),
        (
            ["distill: {layers: 2, blocks: 2, keep_heads: true}", "prune: {exit_block: 2}"],
            "prune.exit_block: 2 is more than the 1 blocks of 'distill' that have a head",
        ),
        (
            [
                "distill: {layers: 4, blocks: 3, keep_heads: true}",
                "prune: {exit_block: 2}",
                "distill: {id: recover, student: prune, blocks: 3}",
            ],
            "recover.blocks: 3 blocks are more than the 2 layers of 'prune'",
        ),
        (
            ["distill: {teachers: [teach, sasrec], layers: 2, blocks: 2, losses: {cosine: 1}}"],
            "distill.teachers: several teachers are averaged by their scores. Set losses.logits "
            "or ranking, or name one.",
        ),
        (
            [
                "distill: {student: sasrec, losses: {logits: 1}}",
                "prune: {model: distill, layers: 1}",
            ],
            "prune.model: 'distill' is a SASRec, but prune needs a recommender on an LLM. Export "
            "it directly.",
        ),
        (
            [f"export: {{top_k: 3841, {TENSORRT}}}"],
            "export.top_k: 3841: TensorRT's TopK returns at most 3840 items. Use at most 3840.",
        ),
        (
            [f"export: {{{TENSORRT}, tensorrt: {{length: [10, 60]}}}}"],
            "export.tensorrt.length: 60: longer than the history of 'teach', 50. Use less than "
            "50; the full history always has a profile.",
        ),
        (
            [EIGHT, f"export: {{{TENSORRT}, tensorrt: {{precision: int4}}}}"],
            "export.tensorrt.precision: int4: 'quantize' has no 4-bit codes. Quantize it to 4 bits "
            "first, or use bf16.",
        ),
        (
            ["quantize: {symmetric: false}", f"export: {{{TENSORRT}}}"],
            "export.tensorrt.precision: int4: 'quantize' has zero points; TensorRT's 4-bit "
            "DequantizeLinear does not support them. Quantize it symmetrically, or use bf16.",
        ),
        (
            ["quantize: {group_size: 24}", f"export: {{{TENSORRT}}}"],
            "export.tensorrt.precision: int4: 'quantize' has group size 24; TensorRT's 4-bit "
            "DequantizeLinear supports 16, 32, 64, 128. Quantize with one of these group sizes, "
            "or use bf16.",
        ),
    ],
)
def test_an_export_that_cannot_be_is_refused(file: Path, steps: list[str], message: str) -> None:
    assert faults(file, recipe(steps)) == [f"./r.yaml:{5 + len(steps)}: {message}"]


@pytest.mark.parametrize(
    "steps",
    [
        ["export: {precision: int8}"],
        ["export: {precision: int8-accurate, opset: 18}"],
        [FOUR, "export:"],
        [FOUR, "export: {precision: int4, opset: 18}"],
        [FOUR, "export: {precision: fp32, layout: padded, opset: 18}"],
        [FOUR, "export: {model: teach, precision: int8}"],
        [EIGHT, "export: {precision: int8-accurate}"],
        ["quantize: {item_table: int8}", "export: {layout: padded}"],
        ["quantize: {symmetric: false}", f"export: {{{TENSORRT}, tensorrt: {{precision: fp16}}}}"],
        [FOUR, f"export: {{top_k: 3840, {TENSORRT}, tensorrt: {{precision: int4, length: [50]}}}}"],
        ["export: {top_k: 5000, tensorrt: {length: [60], precision: int4}}"],
        ["export: {model: sasrec, precision: int8}"],
        [f"export: {{model: sasrec, layout: padded, {TENSORRT}}}"],
    ],
)
def test_an_export_that_can_be_is_not(file: Path, steps: list[str]) -> None:
    assert read(file, recipe(steps)).steps[-1].stage == "export"


@pytest.mark.parametrize(
    "steps",
    [
        # Whether down_proj is there, and all that there is, the model alone can tell.
        [MIXED, "export: {precision: int4}"],
        [MIXED, "export: {precision: int8-accurate}"],
        ["quantize: {item_table: int8, assign: {'*_proj': skip}}", "export: {precision: int8}"],
        ["quantize: {item_table: int8, ignore: [q_proj]}", "export: {precision: int8}"],
    ],
)
def test_what_only_the_model_can_tell_is_left_to_the_stage(file: Path, steps: list[str]) -> None:
    assert read(file, recipe(steps)).steps[-1].stage == "export"


def test_a_model_from_a_path_is_left_to_the_stage(file: Path) -> None:
    """Of a backbone of one's own nothing is known but that teaching leaves floats."""
    text = recipe(["export: {precision: int8}"]).replace("random://llama", "./models/mine")
    assert read(file, text).step("export").inputs["model"] == "teach"


def test_every_misfit_is_told_at_once(file: Path) -> None:
    steps = [
        "distill: {layers: 5}",
        "export: {id: small, precision: int4}",
        "export: {id: whole, model: teach, table: int8+rescore, layout: padded}",
    ]
    keys = [line.split(": ")[1] for line in faults(file, recipe(steps))]
    assert keys == ["distill.layers", "small.precision", "whole.table"]


def test_an_option_that_does_not_fit_is_named(file: Path) -> None:
    told = faults(file, recipe(["export:"]), "export.precision=int4")
    assert told == [f"--set export.precision=int4: {NO_CODES.format(repr('teach'))}"]


@pytest.mark.parametrize("command", [["run"], ["run", "--plan"], ["recipe", "check"]])
def test_the_commands_refuse_it_before_anything_is_made(
    file: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(recipe(["export: {precision: int4}"]))
    assert call([*command, "./r.yaml"]) == 2
    told = capsys.readouterr().err
    assert "./r.yaml:6: export.precision: int4: 'teach' has no 4-bit codes." in told
    assert "slmc recipe check ./r.yaml" in told
    assert [path.name for path in Path().iterdir()] == ["r.yaml"]


def test_a_smoke_run_has_no_lengths_that_its_histories_lack(file: Path) -> None:
    steps = [f"export: {{{TENSORRT}, tensorrt: {{length: [10, 40]}}}}"]
    config = read(file, recipe(steps), smoke=True).step("export").config
    assert isinstance(config, ExportConfig) and config.tensorrt.length == (10, 20)
    assert load("./r.yaml").step("export").config.tensorrt.length == (10, 40)  # type: ignore[attr-defined]
