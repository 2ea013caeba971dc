"""Loss curves are read from a log that may be cut short, repeated or missing."""

import json
from pathlib import Path

from slmc.report.curves import POINTS, curves_of

SEEDS = {17: 3.0, 18: 2.0}


def line(step: int, **terms: object) -> str:
    progress = {"task": "distill", "done": step, "total": 9, "unit": "steps", "terms": terms}
    return json.dumps({"message": "progress", "progress": progress}) + "\n"


def test_terms_by_step(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(line(1, ce=3.0, grad_norm=9.0) + '{"message": "hello"}\n' + line(2, ce=2.0))
    (found,) = curves_of(log)
    assert (found.task, found.terms) == ("distill", {"ce": [(1.0, 3.0), (2.0, 2.0)]})


def test_a_step_that_ran_twice_counts_once_and_a_torn_line_not_at_all(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(line(1, ce=3.0) + line(2, ce=7.0) + line(2, ce=2.0) + line(3, ce=1.0)[:-9])
    (found,) = curves_of(log)
    assert found.terms["ce"] == [(1.0, 3.0), (2.0, 2.0)]


def test_copies_of_a_step_have_curves_of_their_own(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    lines = [json.loads(line(1, ce=ce)) | {"step": f"distill@{seed}"} for seed, ce in SEEDS.items()]
    log.write_text("".join(json.dumps(one) + "\n" for one in lines))
    assert {one.task: one.terms["ce"] for one in curves_of(log)} == {
        "distill@17": [(1.0, 3.0)],
        "distill@18": [(1.0, 2.0)],
    }


def test_validation_is_a_curve_of_its_own_steps(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    valid = {"valid_ndcg": 0.2, "valid_ce": 8.1}
    log.write_text(line(1, ce=3.0) + line(2, ce=2.0) + line(2, **valid) + line(3, ce=1.5))
    (found,) = curves_of(log)
    assert found.terms["ce"] == [(1.0, 3.0), (2.0, 2.0), (3.0, 1.5)]
    assert found.terms["valid_ndcg"] == [(2.0, 0.2)] and found.terms["valid_ce"] == [(2.0, 8.1)]


def test_what_is_not_a_number_is_left_out(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(line(1, ce="nan") + line(2, ce=2.0))
    assert curves_of(log)[0].terms == {"ce": [(2.0, 2.0)]}


def test_long_curves_are_averaged_in_bins(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("".join(line(step, ce=1.0 * step) for step in range(1, 2 * POINTS + 1)))
    points = curves_of(log)[0].terms["ce"]
    assert len(points) == POINTS and points[0] == (1.5, 1.5)


def test_no_log_gives_no_curves(tmp_path: Path) -> None:
    assert curves_of(tmp_path / "log.jsonl") == []
