import json
import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from slmc.artefact import Artefact, load
from slmc.config import Sampled
from slmc.data.dataset import Dataset, Targets
from slmc.errors import BrokenRunError, SlmcError, UndecidedError, UsageError, VerdictError
from slmc.evaluation.config import EvaluateConfig
from slmc.evaluation.evaluate import check_catalogue, evaluate, negatives_of, rank
from slmc.evaluation.results import (
    SCHEMA,
    protocol,
    resolve_auto,
    summarise,
    tail_limit,
    values,
)
from slmc.evaluation.scorers import Histories, VectorScorer

ITEMS = 60


def some_targets(users: int = 37, items: int = ITEMS, seed: int = 0) -> Targets:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 15, users)
    earlier = [rng.integers(1, items + 1, length).astype(np.int32) for length in lengths]
    return Targets(
        users=[f"u{i}" for i in range(users)],
        histories=[rows[-10:] for rows in earlier],
        targets=rng.integers(1, items + 1, users).astype(np.int64),
        seen=[np.unique(rows) for rows in earlier],
    )


COUNTS = np.concatenate(
    [[0], np.random.default_rng(1).integers(1, 50, ITEMS) * (np.arange(ITEMS) % 4 > 0)]
)


class TableScorer:
    """Scores depend only on the last item; blocks have a fixed width."""

    def __init__(self, width: int = ITEMS, items: int = ITEMS) -> None:
        self.num_items, self.width = items, width
        rng = np.random.default_rng(2)
        self.table = torch.from_numpy(rng.integers(0, 40, (items + 1, items)) / 8.0).float()
        self.batches: list[list[int]] = []

    def blocks(self, histories: Histories) -> Iterator[tuple[int, Tensor]]:
        self.batches.append([rows.size for rows in histories])
        scores = self.table[[int(rows[-1]) for rows in histories]]
        for start in range(0, self.num_items, self.width):
            yield start + 1, scores[:, start : start + self.width]


def reference(scorer: TableScorer, targets: Targets, user: int) -> dict[str, Any]:
    """Compute the results of one user by loops over items in float64."""
    row = scorer.table[int(targets.histories[user][-1])].tolist()
    target = int(targets.targets[user])
    target_score = row[target - 1]
    others = [i for i in range(1, ITEMS + 1) if i != target]

    def expected(among: list[int]) -> float:
        above = sum(row[i - 1] > target_score for i in among)
        return 1 + above + sum(row[i - 1] == target_score for i in among) / 2

    return {
        "target": target,
        "rank": expected(others),
        "rank_unseen": math.inf
        if target in targets.seen[user]
        else expected([i for i in others if i not in targets.seen[user]]),
        "ce": math.log(math.fsum(math.exp(s) for s in row)) - target_score,
        "top_items": sorted(range(1, ITEMS + 1), key=lambda i: (-row[i - 1], i))[:20],
    }


@pytest.mark.parametrize("width", [ITEMS, 7])
@pytest.mark.parametrize("batch", [1, 5, 100])
def test_agrees_with_loops_and_keeps_the_order_of_users(width: int, batch: int) -> None:
    targets = some_targets()
    scorer = TableScorer(width)
    table = rank(scorer, targets, COUNTS, EvaluateConfig(batch=batch))
    assert table["user"].to_list() == targets.users
    assert table.schema == pl.Schema(SCHEMA)
    for user in range(len(targets.users)):
        expected = reference(scorer, targets, user)
        row = table.row(user, named=True)
        assert row["ce"] == pytest.approx(expected.pop("ce"), abs=1e-5)
        assert {k: row[k] for k in expected} == expected
    assert table["rank_sampled"].null_count() == table["negatives"].null_count() == 37


@pytest.mark.parametrize("width", [ITEMS, 7])
def test_without_top_lists_the_rest_is_the_same(width: int) -> None:
    whole = rank(TableScorer(width), some_targets(), COUNTS, EvaluateConfig())
    less = rank(TableScorer(width), some_targets(), COUNTS, EvaluateConfig(), top=0)
    lists = ("top_items", "top_scores")
    assert less.drop(lists).equals(whole.drop(lists))
    assert less.schema == whole.schema
    assert all(rows.is_empty() for name in lists for rows in less[name])


def test_batches_hold_histories_of_similar_length() -> None:
    scorer = TableScorer()
    rank(scorer, some_targets(), COUNTS, EvaluateConfig(batch=8))
    sizes = [size for batch in scorer.batches for size in batch]
    assert sizes == sorted(sizes)
    assert [len(batch) for batch in scorer.batches] == [8, 8, 8, 8, 5]


def test_columns_of_users_and_targets() -> None:
    targets = some_targets()
    table = rank(TableScorer(), targets, COUNTS, EvaluateConfig())
    assert table["count"].to_list() == COUNTS[targets.targets].tolist()
    lengths = [max(h.size, s.size) for h, s in zip(targets.histories, targets.seen, strict=True)]
    assert table["history"].to_list() == lengths
    assert table["tail"].to_list() == [COUNTS[t] <= tail_limit(COUNTS) for t in targets.targets]
    assert table["new"].to_list() == [COUNTS[t] == 0 for t in targets.targets]
    assert table["same_time"].null_count() == table.height


def test_the_table_says_which_targets_are_tied() -> None:
    same = np.arange(37) % 3 == 0
    targets = replace(some_targets(), same_time=same)
    table = rank(TableScorer(), targets, COUNTS, EvaluateConfig(batch=8))
    assert table["same_time"].to_list() == same.tolist()
    few = targets.sample(9, 1)
    assert few.same_time is not None
    assert few.same_time.tolist() == [int(user[1:]) % 3 == 0 for user in few.users]


class SeenScorer:
    """Seen items have one score, all others 0."""

    def __init__(self, of_seen: float) -> None:
        self.num_items, self.of_seen = ITEMS, of_seen

    def blocks(self, histories: Histories) -> Iterator[tuple[int, Tensor]]:
        scores = torch.zeros(len(histories), ITEMS)
        for user, rows in enumerate(histories):
            scores[user, torch.from_numpy(rows).long() - 1] = self.of_seen
        yield 1, scores


@pytest.mark.parametrize("of_seen", [1.0, -1.0])
@pytest.mark.parametrize("ranking", ["full", Sampled(sampled=9)])
def test_a_seen_target_is_a_miss_where_seen_items_are_left_out(
    of_seen: float, ranking: Literal["full"] | Sampled
) -> None:
    """If the target were unmasked, a scorer that only knows the seen items would rank it first."""
    earlier = [np.array([1, 2, 3], dtype=np.int32), np.array([4], dtype=np.int32)]
    targets = Targets(["again", "new"], earlier, np.array([2, 9]), seen=earlier)
    config = EvaluateConfig(
        ranking=ranking, exclude_seen=True, metrics=("ndcg@10", "ndcg", "hr@10", "mrr")
    )
    table = rank(SeenScorer(of_seen), targets, COUNTS, config)
    summary = summarise(table, config)
    assert summary["repeats"] == {"users": 1, "share": 0.5}
    for metric in config.metrics:
        again, new = values(table, metric, protocol(config))
        assert again == 0
        assert summary["metrics"][metric]["value"] == new / 2
    json.dumps(summary, allow_nan=False)
    kept = config.model_copy(update={"exclude_seen": False})
    again = values(rank(SeenScorer(of_seen), targets, COUNTS, kept), "mrr", protocol(kept))[0]
    # With seen items kept, it ties with two others; no negative is a seen item.
    among_all = 1 / 2 if of_seen > 0 else 1 / (ITEMS - 1)
    assert again == pytest.approx(among_all if ranking == "full" else 1.0 if of_seen > 0 else 0.1)


def test_auto_depends_on_the_share_of_repeats() -> None:
    def data(again: int, users: int = 200) -> Dataset:
        items = pl.DataFrame({"row": [1, 2, 3], "count": [1, 1, 1]})
        rows = [[1, 1, 2] if user < again else [1, 2, 3] for user in range(users)]
        cuts = {"valid_from": [1] * users, "test_from": [2] * users}
        return Dataset(items, pl.DataFrame({"user": range(users), "items": rows, **cuts}), 10)

    for again, excluded in ((1, True), (2, False)):
        assert data(again).repeats == again / 200
        assert resolve_auto(EvaluateConfig(), data(again)).exclude_seen is excluded
        for value in (True, False):
            config = EvaluateConfig(exclude_seen=value)
            assert resolve_auto(config, data(again)).exclude_seen is value
    with pytest.raises(ValueError, match="depends on the dataset"):
        protocol(EvaluateConfig())


def test_the_share_of_repeats_agrees_with_a_loop(dataset: Artefact) -> None:
    data = Dataset.open(dataset)
    valid = data.targets("valid")
    again = [t in seen for t, seen in zip(valid.targets, valid.seen, strict=True)]
    assert data.repeats == np.mean(again)
    assert dataset.manifest.metrics["valid_repeats"] == data.repeats
    nobody = data.sequences.with_columns(valid_from=pl.col("test_from"))
    assert Dataset(data.items, nobody, data.history).repeats == 0


def test_vector_scorer_ranks_the_same_in_any_chunk() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(ITEMS + 1, 8, generator=generator)
    calls: list[tuple[int, ...]] = []

    def user_vectors(ids: Tensor) -> Tensor:
        calls.append(tuple(ids.shape))
        return table[ids].sum(dim=1)

    targets = some_targets()
    whole = rank(VectorScorer(user_vectors, table), targets, COUNTS, EvaluateConfig())
    once = len(calls)
    parts = rank(VectorScorer(user_vectors, table, chunk=16), targets, COUNTS, EvaluateConfig())
    assert len(calls) == 2 * once  # the second pass reuses the vectors
    assert whole.drop("ce", "top_scores").equals(parts.drop("ce", "top_scores"))
    assert whole["ce"].to_numpy() == pytest.approx(parts["ce"].to_numpy(), abs=1e-5)


def test_negatives_are_uniform_over_free_items_and_equal_for_every_model() -> None:
    excluded, drawn = np.array([1, 4, 5, 9, 10]), np.zeros(11, dtype=int)
    for index in range(4000):
        rows = negatives_of(index, excluded, 10, Sampled(sampled=2), seed=3)
        assert len(set(rows.tolist())) == 2
        drawn[rows] += 1
    assert drawn[excluded].sum() == drawn[0] == 0
    # 1600 draws of each free row expected, standard deviation 31
    assert all(abs(drawn[row] - 1600) < 160 for row in (2, 3, 6, 7, 8))
    again = negatives_of(7, excluded, 10, Sampled(sampled=2), seed=3)
    assert again.tolist() == negatives_of(7, excluded, 10, Sampled(sampled=2), seed=3).tolist()


def test_sampled_ranks_do_not_depend_on_batches_or_blocks() -> None:
    config = EvaluateConfig(ranking=Sampled(sampled=9), batch=3, exclude_seen=False)
    targets = some_targets()
    one = rank(TableScorer(), targets, COUNTS, config)
    other = rank(TableScorer(13), targets, COUNTS, config.model_copy(update={"batch": 50}))
    assert one.drop("ce").equals(other.drop("ce"))
    assert one["negatives"].unique().to_list() == [9]
    assert 1 <= one["rank_sampled"].min() <= one["rank_sampled"].max() <= 10  # type: ignore[operator]
    reseeded = rank(TableScorer(), targets, COUNTS, config.model_copy(update={"seed": 18}))
    assert not reseeded["rank_sampled"].equals(one["rank_sampled"])


def test_too_few_items_for_the_negatives(caplog: pytest.LogCaptureFixture) -> None:
    config = EvaluateConfig(ranking=Sampled(sampled=55), exclude_seen=True)
    table = rank(TableScorer(), some_targets(), COUNTS, config)
    sampled = table.filter(pl.col("negatives") < 55)
    assert 0 < sampled.height < table.height
    # Ranked among all free items, as in full ranking without seen items.
    assert sampled["rank_sampled"].equals(sampled["rank_unseen"], null_equal=False)
    expected = f"evaluate: {sampled.height} users have fewer unseen items than sampled negatives"
    assert caplog.messages == [expected]
    recorded = summarise(table, config)["protocol"]["users_with_fewer_negatives"]
    assert recorded == sampled.height


def test_progress_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "slmc.evaluate")
    rank(TableScorer(), some_targets(), COUNTS, EvaluateConfig(batch=20), "evaluate teach")
    assert [record.progress for record in caplog.records] == [  # type: ignore[attr-defined]
        {"task": "evaluate teach", "done": 20, "total": 37, "unit": "users"},
        {"task": "evaluate teach", "done": 37, "total": 37, "unit": "users"},
    ]


def check(error: pytest.ExceptionInfo[SlmcError], what: str, remedy: str) -> None:
    assert (error.value.what, error.value.remedy) == (what, remedy)


@pytest.mark.parametrize("width", [ITEMS, 7])
def test_a_score_that_is_not_finite(width: int) -> None:
    scorer, targets = TableScorer(width), some_targets()
    scorer.table[int(targets.histories[11][-1]), 5] = math.nan
    with pytest.raises(BrokenRunError) as caught:
        rank(scorer, targets, COUNTS, EvaluateConfig(batch=1))
    last = int(targets.histories[11][-1])
    hit = {f"u{i}" for i, rows in enumerate(targets.histories) if rows[-1] == last}
    named = caught.value.what.split("'")[1]
    assert named in hit
    check(
        caught,
        f"evaluate: a score of user {named!r} is not a finite number.",
        "Check how the model was trained: training diverged, or its weights are damaged.",
    )


def test_constant_scores_of_all_users() -> None:
    scorer = TableScorer()
    scorer.table[:] = 0.25
    with pytest.raises(VerdictError) as caught:
        rank(scorer, some_targets(), COUNTS, EvaluateConfig())
    check(
        caught,
        "evaluate: anomalous: each user has the same score for all items.",
        "Check how the model was trained: it has learned nothing, or its weights were lost.",
    )


def test_no_user() -> None:
    nobody = Targets(users=[], histories=[], targets=np.zeros(0, dtype=np.int64), seen=[])
    with pytest.raises(UndecidedError) as caught:
        rank(TableScorer(), nobody, COUNTS, EvaluateConfig(split="valid"))
    check(
        caught,
        "no user has a valid target, so there is nothing to evaluate.",
        "Choose a split with users; `slmc data check` shows the users of each split.",
    )


def test_the_stage(dataset: Artefact, sasrec: Artefact, tmp_path: Path) -> None:
    inputs = {"data": dataset, "model": sasrec}
    report = evaluate(EvaluateConfig(), inputs, tmp_path / "one")
    table = pl.read_parquet(report.file("per_user.parquet"))
    data = Dataset.open(dataset)
    assert table["user"].to_list() == data.targets("test").users
    summary = json.loads(report.file("metrics.json").read_text())
    config, temperature = resolve_auto(EvaluateConfig(), data), summary["temperature"]
    assert 0.2 < temperature < 8
    assert summary == report.manifest.metrics == summarise(table, config, temperature)
    ce = {name: summary["metrics"][name]["value"] for name in ("ce", "ce_calibrated")}
    assert ce["ce_calibrated"] < ce["ce"]
    # The next item is predictable; the mean rank of chance would be 15.
    assert table["rank"].mean() < 8  # type: ignore[operator]
    again = evaluate(EvaluateConfig(), inputs, tmp_path / "two")
    assert again.digest == report.digest == load(tmp_path / "one").digest


def test_a_model_of_another_catalogue(dataset: Artefact) -> None:
    with pytest.raises(UsageError) as caught:
        check_catalogue(TableScorer().num_items, Dataset.open(dataset))
    check(
        caught,
        "the model ranks 60 items, the dataset has 30.",
        "Name the dataset that the model was trained on with --data.",
    )


@pytest.mark.gpu
def test_a_gpu_ranks_as_the_cpu_does() -> None:
    """Small integers: their dot products are exact in any order, so ties remain ties."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randint(-3, 4, (ITEMS + 1, 8), generator=generator).float()
    config = EvaluateConfig(ranking=Sampled(sampled=9), batch=8, exclude_seen=False)
    tables = {}
    for device in ("cpu", "cuda"):
        items = table.to(device)
        scorer = VectorScorer(lambda ids, items=items: items[ids].sum(dim=1), items, chunk=16)  # type: ignore[misc]
        tables[device] = rank(scorer, some_targets(), COUNTS, config)
    assert tables["cpu"].drop("ce").equals(tables["cuda"].drop("ce"))
    assert tables["cuda"]["ce"].to_numpy() == pytest.approx(
        tables["cpu"]["ce"].to_numpy(), abs=1e-4
    )
