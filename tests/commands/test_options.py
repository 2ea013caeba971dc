"""Options made from configs: names, values, and what is said against them."""

import pytest

from slmc.commands.options import build, settings
from slmc.data.config import PrepareConfig
from slmc.distill.config import DistillConfig, TeachConfig
from slmc.errors import UsageError
from slmc.evaluation.config import EvaluateConfig
from slmc.export.config import BenchConfig
from slmc.stages import STAGES


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_every_field_of_every_stage_is_an_option_with_a_help(stage: str) -> None:
    config = STAGES[stage].config
    found = settings(config)
    assert {one.path[0] for one in found} == set(config.model_fields)
    assert [one.option for one in found if not one.help] == []
    assert len({one.parameter for one in found}) == len(found)


def test_names_and_defaults() -> None:
    found = {one.option: one for one in settings(DistillConfig)}
    assert found["--losses.norm"].help.endswith("[default: 0.1]")
    assert found["--losses.logits"].help.endswith("[default: null]")
    assert found["--control"].flag
    assert "--projection-lr" in found
    assert {o.option: o.metavar for o in settings(PrepareConfig)}["--split.by"] == (
        "leave-one-out|time"
    )


def test_the_help_shows_what_a_value_may_be() -> None:
    shown = {o.option: o.metavar for stage in STAGES.values() for o in settings(stage.config)}
    assert "null" not in shown.values() and "VALUE" not in shown.values()
    assert shown["--prompt"] == "MAPPING|null"
    assert shown["--ranking"] == "full|MAPPING"
    assert shown["--exclude-seen"] == "true|false|auto"
    assert shown["--split.valid"] == "YYYY-MM-DD"
    assert shown["--max-minutes"] == "FLOAT|null"
    assert shown["--assign"] == "NAME=VALUE,…"


def test_a_whole_mapping_may_be_given() -> None:
    given = {("titles",): "{source: titles.csv, title: name}"}
    titles = build(PrepareConfig, given, "x", source="a").titles
    assert titles is not None and (titles.source, titles.title) == ("titles.csv", "name")


def test_values_are_read_as_in_a_recipe() -> None:
    made = build(DistillConfig, {("lr",): "1e-3", ("layers",): "6", ("control",): True}, "x")
    assert (made.lr, made.layers, made.control) == (1e-3, 6, True)


def test_a_nested_option_keeps_its_neighbours_and_null_takes_one_away() -> None:
    made = build(DistillConfig, {("losses", "norm"): "0.2", ("losses", "cosine"): "null"}, "x")
    assert made.losses.weights() == {"norm": 0.2, "supervise": 1.0}


def test_lists_are_repeated_or_comma_separated() -> None:
    for said in (["1,8", "64"], ["1", "8", "64"], ["[1, 8, 64]"]):
        assert build(BenchConfig, {("batch",): said}, "x").batch == (1, 8, 64)


def test_a_union_with_a_nested_config() -> None:
    assert build(EvaluateConfig, {("ranking",): "full"}, "x").ranking == "full"
    sampled = build(EvaluateConfig, {("ranking", "sampled"): "99"}, "x").ranking
    assert sampled.model_dump() == {"sampled": 99}
    dates = {("split", "by"): "time", ("split", "valid"): "2020-01-01"}
    made = build(PrepareConfig, dates | {("split", "test"): "2020-02-01"}, "x", source="a.csv")
    assert made.split.model_dump(mode="json")["test"] == "2020-02-01"


def test_what_may_be_absent_is_taken_away_with_null() -> None:
    assert build(TeachConfig, {("backbone",): "b", ("must_beat",): "null"}, "x").must_beat is None


def test_text_that_looks_like_a_number_stays_text() -> None:
    assert build(TeachConfig, {("backbone",): "123", ("revision",): "1e5"}, "x").revision == "1e5"


@pytest.mark.parametrize(
    ("config", "given", "message"),
    [
        (
            DistillConfig,
            {("losses", "norm"): "-1"},
            "--losses.norm: should be greater than 0, not -1",
        ),
        (
            DistillConfig,
            {("layers",): "0", ("scale",): "none", ("init",): "x"},
            "--layers: should be greater than or equal to 1, not 0; "
            "--init: should be 'backbone' or 'teacher', not \"x\"",
        ),
        (DistillConfig, {("layers",): "2"}, "4 blocks do not fit into 2 layers"),
        (TeachConfig, {}, "--backbone: is required"),
        (
            PrepareConfig,
            {("source",): "a", ("split", "valid"): "2020-01-01"},
            "--split.valid: cannot be used with the other settings of this kind",
        ),
        (
            PrepareConfig,
            {("source",): "a", ("max_malformed",): "lots"},
            "--max-malformed: 'lots' is neither a number nor a percentage such as 3%",
        ),
    ],
)
def test_refusals_name_the_option(
    config: type[DistillConfig], given: dict[tuple[str, ...], str], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        build(config, given, "slmc distill")
    assert caught.value.what == message
    assert caught.value.remedy == "See `slmc distill --help`."
