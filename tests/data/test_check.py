from pathlib import Path

import pytest

from slmc.artefact import Artefact, draft
from slmc.config import StageConfig
from slmc.data.check import check, describe
from slmc.data.config import PrepareConfig
from slmc.data.dataset import Dataset
from slmc.data.prepare import prepare
from slmc.errors import ArtefactError, DataError

LOG = "user_id,item_id,timestamp\n" + "".join(
    f"u{u},i{i},{i}\n" for u in range(8) for i in range(6 + u % 2)
)


def test_check_returns_the_metrics_of_prepare_and_writes_nothing(folder: Path) -> None:
    Path("log.csv").write_text(LOG)
    config = PrepareConfig(source="log.csv")
    result = check(config)
    assert [path.name for path in folder.iterdir()] == ["log.csv"]
    artefact = prepare(config, {}, folder / "data")
    assert artefact.manifest.metrics.items() <= result.metrics.items()
    assert result.dataset.sequences.equals(Dataset.open(artefact).sequences)
    assert result.problem is None and result.malformed.height == 0
    assert (result.metrics["log_users"], result.metrics["log_items"]) == (8, 7)


def test_check_lists_all_malformed_rows_of_a_log_that_prepare_refuses(folder: Path) -> None:
    Path("log.csv").write_text(LOG + ",i1,1\n" * 9)
    result = check(PrepareConfig(source="log.csv"))
    assert result.malformed.height == 9
    assert isinstance(result.problem, DataError)
    assert result.problem.what == (
        "9 of 61 rows are malformed, more than max_malformed (1%) allows; the first: "
        "log.csv, line 54: user_id is empty."
    )


def test_describe(folder: Path) -> None:
    Path("log.csv").write_text(LOG)
    described = describe(prepare(PrepareConfig(source="log.csv", history=5), {}, folder / "data"))
    assert (described["users"], described["history"], described["split"]) == (
        8,
        5,
        {"by": "leave-one-out"},
    )
    # The 5-core drops i6, which only four users have: six items per user are left.
    assert set(described["history_lengths"].values()) == {6.0}
    # Training parts are i0 to i3, eight times each; i4 and i5 only validate and test.
    counts = {"min": 0.0, "p25": 0.0, "median": 8.0, "p75": 8.0, "p95": 8.0, "max": 8.0}
    assert described["item_counts"] == counts


def test_describe_refuses_another_artefact(folder: Path) -> None:
    with draft(folder / "report") as work:
        (work.path / "x").write_text("x")
        report: Artefact = work.seal(kind="report", stage="x", config=StageConfig(), inputs={})
    with pytest.raises(ArtefactError, match=r"has no file preprocessor\.json: it is a report"):
        describe(report)
