import numpy as np
import polars as pl
import pytest

from slmc.config import Sampled
from slmc.errors import UndecidedError
from slmc.evaluation.config import EvaluateConfig
from slmc.evaluation.results import (
    protocol,
    protocol_text,
    summarise,
    summary_text,
    tail_limit,
    values,
)


def table(**columns: list[float | None]) -> pl.DataFrame:
    names = ("rank", "rank_unseen", "rank_sampled", "ce")
    n = len(next(iter(columns.values())))
    return pl.DataFrame({k: columns.get(k, [None] * n) for k in names}).cast(pl.Float64)


def test_the_protocol_chooses_the_rank() -> None:
    ranked = table(rank=[4.0, 1.0], rank_unseen=[2.0, 1.0], rank_sampled=[1.0, 1.0])
    for config, expected in (
        (EvaluateConfig(exclude_seen=False), [0.25, 1.0]),
        (EvaluateConfig(exclude_seen=True), [0.5, 1.0]),
        (EvaluateConfig(exclude_seen=False, ranking=Sampled(sampled=5)), [1.0, 1.0]),
    ):
        assert values(ranked, "mrr", protocol(config)).tolist() == expected


def test_a_missing_metric() -> None:
    sampled = protocol(EvaluateConfig(ranking=Sampled(), exclude_seen=False))
    with pytest.raises(UndecidedError) as caught:
        values(table(rank=[1.0], ce=[1.0]), "hr@10", sampled)
    assert caught.value.what == "hr@10 is missing: the evaluation has no rank_sampled."
    assert caught.value.remedy == "Evaluate again with the ranking protocol that the metric needs."


def test_summary_has_protocol_n_and_standard_errors() -> None:
    config = EvaluateConfig(metrics=("hr@10", "mrr", "ce"), exclude_seen=False)
    summary = summarise(table(rank=[1.0, 2.0, 20.0, 40.0]), config)
    assert summary["protocol"] == {"ranking": "full", "exclude_seen": False, "split": "test"}
    assert summary["n"] == 4
    # mean .5, standard deviation sqrt(1/3), over sqrt(4)
    assert summary["metrics"]["hr@10"] == pytest.approx({"value": 0.5, "se": 0.28867513})
    assert summary["metrics"]["mrr"]["value"] == pytest.approx((1 + 0.5 + 0.05 + 0.025) / 4)
    assert summary["metrics"]["ce"] == {"value": None, "se": None}
    alone = summarise(table(rank=[1.0], ce=[3.0]), config)
    assert alone["metrics"]["ce"] == {"value": 3.0, "se": None}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (EvaluateConfig(exclude_seen=False), "full ranking, seen items kept, test"),
        (EvaluateConfig(exclude_seen=True), "full ranking, seen items left out, test"),
        (
            EvaluateConfig(ranking=Sampled(), split="valid", exclude_seen=True),
            "999 sampled negatives, valid",
        ),
    ],
)
def test_protocols_as_text(config: EvaluateConfig, words: str) -> None:
    assert protocol_text(protocol(config)) == words


def test_the_tail_is_the_least_popular_80_percent() -> None:
    assert tail_limit(np.array([0, 9, 8, 7, 6, 5, 4, 3, 2, 1, 10])) == 8
    assert tail_limit(np.array([0, 5, 5, 5])) == 5
    assert tail_limit(np.array([0, 100, 1, 1, 1, 1])) == 1


def test_the_shares_of_repeats_as_text() -> None:
    ranked = table(rank=[4.0, 1.0], rank_unseen=[float("inf"), 1.0])
    left_out, kept = (
        summary_text(summarise(ranked, EvaluateConfig(exclude_seen=out, metrics=("mrr",))), 0.004)
        for out in (True, False)
    )
    assert left_out == (
        "full ranking, seen items left out, test (repeats are 50 % of the targets, each a miss, "
        "and 0.4 % of the validation targets)"
    )
    assert kept.endswith("(repeats are 50 % of the targets, and 0.4 % of the validation targets)")
