"""Cold and new items, and what texts bring: a run with a SASRec on ids and one with texts."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import text_encoders
from rich.console import Console

from slmc import pipeline, recipe
from slmc.artefact import Artefact, draft
from slmc.commands.lineage import as_recipe
from slmc.config import Seeded
from slmc.data.config import LeaveOneOut
from slmc.evaluation.metrics import rank_metric
from slmc.evaluation.results import segment_mask
from slmc.pipeline import RunResult
from slmc.report import html, markdown
from slmc.report.advice import advice, texts_not_apart
from slmc.report.tables import rows_of, user_tables
from slmc.report.targets import TargetTable, target_table
from slmc.report.terminal import run_table
from slmc.report.view import View, view_of

RECIPE = """
version: 1
name: texts
data:
  source: log.csv
  core: 1
  history: 10
  items: {source: items.csv}
  split: {by: time, valid: 2026-01-20, test: 2026-01-25}
steps:
- sasrec: {id: ids, epochs: 2, dim: 8, rows: 16, warmup: 5, dtype: fp32}
- sasrec:
    {id: text, epochs: 2, dim: 8, rows: 16, warmup: 5, dtype: fp32, item_embeddings: hybrid,
     encoder: ./encoder, encoder_layer: auto}
- teach:
    backbone: ./llm
    layers: 1
    item_embeddings: text
    item_dim: 8
    epochs: 1
    rows: 8
    dtype: fp32
gates:
- {metric: ndcg@10, on: teach, segment: cold-items, min: 0}
"""
USERS, ITEMS, NEW = 60, 30, 4


def write_log(folder: Path) -> None:
    """Items in turn; the target of every tenth user in the test period is a new item."""
    rng = np.random.default_rng(0)
    rows = ["user_id,item_id,timestamp"]
    for user in range(USERS):
        item = int(rng.integers(ITEMS))
        for day in (1, 3, 5, 8, 12, 15, 21, 26):
            new = day == 26 and user % 10 == 0
            name = f"new{user // 10 % NEW}" if new else f"i{item}"
            rows.append(f"u{user},{name},2026-01-{day:02d}T00:00:{user % 60:02d}Z")
            item = (item * 7 + 3) % ITEMS if rng.random() < 0.8 else int(rng.integers(ITEMS))
    (folder / "log.csv").write_text("\n".join(rows) + "\n")
    names = [f"i{n}" for n in range(ITEMS)] + [f"new{n}" for n in range(NEW)]
    words = text_encoders.WORDS
    titles = [f"{words[n % 7]} {words[n // 7 % 7]} {words[n % 5 + 7]}" for n in range(len(names))]
    pl.DataFrame({"item_id": names, "title": titles}).write_csv(folder / "items.csv")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    folder = tmp_path_factory.mktemp("texts")
    write_log(folder)
    text_encoders.save(folder / "encoder")
    text_encoders.save(folder / "llm", "llama")
    file = folder / "texts.yaml"
    file.write_text(RECIPE)
    return pipeline.run(recipe.load(file), run_dir=folder / "out")


@pytest.fixture(scope="module")
def view(finished: RunResult) -> View:
    return view_of(finished)


def of_user(finished: RunResult, name: str) -> pl.DataFrame:
    (table,) = user_tables(finished, name)
    return table


def targets_of(result: RunResult) -> TargetTable | None:
    return target_table(
        result, "ndcg@10", rows_of(result, metric="ndcg@10", teacher="teach", timed={})
    )


def mean_gain(result: RunResult, name: str, group: pl.Expr) -> float:
    """NDCG@10 of the users of a group."""
    column = "rank_unseen" if result.protocol["exclude_seen"] else "rank"
    ranks = of_user(result, name).filter(group)[column].to_numpy()
    return float(rank_metric("ndcg@10", ranks).mean())


def with_ranks(finished: RunResult, ranks: dict[str, float], place: Path) -> RunResult:
    """The run, had the users' targets these ranks in the mean."""
    evaluations = dict(finished.evaluations)
    for name, rank in ranks.items():
        table = of_user(finished, name)
        around = rank + pl.int_range(pl.len()) % 2
        table = table.with_columns(rank=around, rank_unseen=around)
        with draft(place / name) as work:
            table.write_parquet(work.path / "per_user.parquet")
            evaluations[name] = work.seal(
                kind="report", stage="evaluate", config=Seeded(), inputs={}
            )
    return replace(finished, evaluations=evaluations)


def test_the_last_sasrec_gives_the_baseline_and_the_others_are_measured_too(
    finished: RunResult,
) -> None:
    known = {step.id: step for step in finished.recipe.steps}
    assert known["baselines"].inputs["sasrec"] == known["teach"].inputs["sasrec"] == "text"
    assert finished.recipe.baseline_sasrec == "text"
    assert set(finished.evaluations) == {"ids", "teach"}


def test_every_sasrec_has_a_row(view: View) -> None:
    rows = {row.step: row for row in view.rows}
    assert list(rows) == ["popularity", "markov", "text", "ids", "teach"]
    assert [row.kind for row in view.rows] == ["baseline"] * 4 + ["model"]
    assert rows["ids"].parameters and rows["text"].parameters
    assert rows["text"].value != rows["ids"].value
    assert rows["ids"].change is not None and rows["text"].change is not None


def test_groups_are_users_by_the_training_interactions_of_their_target(
    finished: RunResult, view: View
) -> None:
    table = of_user(finished, "text")
    new = table["count"].to_numpy() == 0
    assert new.sum() == USERS // 10
    assert (segment_mask(table, "cold-items") == (table["count"].to_numpy() <= 5)).all()
    assert view.targets is not None
    assert [(one.segment, one.n) for one in view.targets.groups] == [
        ("cold-items", int((table["count"] <= 5).sum())),
        ("new-items", USERS // 10),
    ]
    assert view.targets.headings[-1] == (
        "new-items (no training interactions; n = 6, 10.0 % of users)"
    )


def test_values_are_means_over_the_users_of_a_group(finished: RunResult, view: View) -> None:
    assert view.targets is not None
    assert [row.step for row in view.targets.rows] == [row.step for row in view.rows]
    groups = (pl.lit(True), pl.col("count") <= 5, pl.col("count") == 0)
    for row in view.targets.rows:
        for shown, group in zip(row.values, groups, strict=True):
            assert shown.split(" ")[0] == f"{mean_gain(finished, row.step, group):.4f}"


def test_texts_against_ids_and_popularity_on_new_items(finished: RunResult, tmp_path: Path) -> None:
    result = with_ranks(finished, {"text": 2.0, "ids": 8.0}, tmp_path)
    targets = targets_of(result)
    assert targets is not None and len(targets.sentences) == 2
    ours, theirs, popularity = (
        mean_gain(result, name, pl.col("count") == 0) for name in ("text", "ids", "popularity")
    )
    assert re.fullmatch(
        r"Targets with no training interactions \(n = 6, 10\.0 % of users\): NDCG@10 "
        rf"{ours:.4f} of SASRec with texts \(text\) against {theirs:.4f} on ids \(ids\), "
        rf"\+{100 * (ours / theirs - 1):.1f} % \[.*\]; popularity {popularity:.4f}\.",
        targets.sentences[1],
    )


@pytest.mark.parametrize(
    ("ranks", "start"),
    [
        ({"text": 2.0, "ids": 8.0}, "Texts raise SASRec's NDCG@10 by "),
        ({"text": 8.0, "ids": 2.0}, "Texts lower SASRec's NDCG@10 by "),
        ({"text": 2.0, "ids": 2.0}, "Texts do not change SASRec's NDCG@10 significantly (+0.0 % ["),
    ],
)
def test_the_first_line_is_what_texts_bring(
    ranks: dict[str, float], start: str, finished: RunResult, tmp_path: Path
) -> None:
    line = advice(with_ranks(finished, ranks, tmp_path))[0]
    assert line.startswith(start)
    assert re.search(r"0\.\d{4} \(text\) against 0\.\d{4} \(ids\), n = 60\.$", line)


@pytest.mark.parametrize(
    ("rank", "start"),
    [
        (1.0, "The LLM (teach) adds "),
        (2.0, "On this log the LLM (teach) does not rank better than SASRec with the same texts: "),
        (9.0, "On this log the LLM (teach) ranks worse than SASRec with the same texts: "),
    ],
)
def test_the_llm_is_compared_with_the_sasrec_of_the_same_texts(
    rank: float, start: str, finished: RunResult, tmp_path: Path
) -> None:
    result = with_ranks(finished, {"text": 2.0, "ids": 8.0, "teach": rank}, tmp_path)
    lines = advice(result)
    assert lines[1].startswith(start)
    if rank == 1.0:
        assert re.search(
            r"adds \d+\.\d % \[\+.*\] to SASRec with the same texts: NDCG@10", lines[1]
        )
        assert len(lines) == 2
    else:
        folder = next(finished.run_dir.glob("*-text"))
        assert lines[2].endswith(f"Consider shipping it instead: `slmc export {folder}`.")


def test_a_teacher_of_texts_beside_a_sasrec_of_ids_is_noted(finished: RunResult) -> None:
    assert texts_not_apart(finished) == []
    alone = [step for step in finished.recipe.steps if step.id != "text"]
    on_ids = [
        replace(step, inputs={r: "ids" if i == "text" else i for r, i in step.inputs.items()})
        for step in alone
    ]
    steps = [step for step in finished.steps if step.id != "text"]
    result = replace(finished, recipe=replace(finished.recipe, steps=tuple(on_ids)), steps=steps)
    (note,) = texts_not_apart(result)
    assert note.startswith("the item vectors of teach come from texts and those of SASRec do not")
    assert not [line for line in advice(result) if line.startswith("Texts")]
    assert not [line for line in advice(result) if "same texts" in line]


def test_every_form_has_the_table(view: View) -> None:
    assert view.targets is not None
    console = Console(width=400, record=True, quiet=False, force_terminal=False)
    with console.capture() as captured:
        console.print(run_table(view))
    texts = (captured.get(), markdown.summary(view), html.page(view))
    for text in texts:
        for group in view.targets.groups:
            assert f"{100 * group.share:.1f} % of users" in text
        assert "Targets with no training interactions" in text.replace("&#39;", "'")
    assert "### Cold and new items" in texts[1] and "<h2>Cold and new items</h2>" in texts[2]


def test_cold_items_can_be_gated(finished: RunResult, view: View) -> None:
    (verdict,) = finished.verdicts
    assert view.targets is not None
    assert verdict.n == view.targets.groups[0].n
    assert f"(cold-items, {100 * verdict.share:.0f} % of users, n = " in verdict.sentence


def test_a_run_without_texts_and_new_targets_has_no_table(finished: RunResult) -> None:
    data = finished.recipe.data.model_copy(update={"items": None})
    plain = replace(finished, recipe=replace(finished.recipe, data=data))
    assert targets_of(plain) is not None  # a temporal split with new targets
    data = data.model_copy(update={"split": LeaveOneOut()})
    plain = replace(finished, recipe=replace(finished.recipe, data=data))
    assert targets_of(plain) is None


def test_the_choice_of_the_layer_is_noted(finished: RunResult, view: View) -> None:
    made: dict[str, Artefact] = finished.artefacts()
    for name in ("text", "teach"):
        chosen = made[name].manifest.metrics["encoder_layer"]
        values = ", ".join(f"{layer}: {value:.4f}" for layer, value in chosen["values"].items())
        assert list(chosen["values"]) == ["1", "2"]
        assert (
            f"{name}: texts are encoded by layer {chosen['layer']} of 2; validation ndcg by text "
            f"similarity alone, by layer: {values}"
        ) in view.notes


def test_the_saved_recipe_of_a_teacher_names_its_sasrec_only_where_it_is_not_the_last(
    finished: RunResult, tmp_path: Path
) -> None:
    made, made_with = finished.artefacts(), finished.recipe.step("teach").inputs
    inputs = {role: made[step] for role, step in made_with.items()}
    config = finished.recipe.step("teach").config
    text = as_recipe("teach", config, inputs, tmp_path / "usual.yaml")
    assert "sasrec: " not in text.replace("- sasrec:", "")
    other = inputs | {"sasrec": made["ids"]}
    (tmp_path / "other.yaml").write_text(as_recipe("teach", config, other, tmp_path / "other.yaml"))
    read = recipe.load(tmp_path / "other.yaml")
    bases = {step.id: step.config for step in read.steps if step.stage == "sasrec"}
    assert bases[read.step("teach").inputs["sasrec"]] == finished.recipe.step("ids").config
    assert bases[read.baseline_sasrec] == finished.recipe.step("text").config
