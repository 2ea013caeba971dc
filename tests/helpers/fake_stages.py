"""Stages that need no torch and take no time: what the tests of the pipeline run.

Each writes a line to ``$FAKE_CALLS`` when it starts. Files in the folder of ``$FAKE_CALLS`` change
what it does: ``STAGE.crash`` breaks it, ``STAGE.wait`` makes it wait, and with
``teach.worse`` the teacher is worse than Markov-1. ``ranks.json`` says how much worse a model
ranks: a list of {split, config, worse}, of which the first that fits the model's config counts.
"""

import errno
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from slmc import stages
from slmc.artefact import Artefact, canonical, draft
from slmc.errors import VerdictError
from slmc.evaluation.config import EvaluateConfig
from slmc.evaluation.results import SCHEMA, protocol

USERS = 40
PROTOCOL = protocol(EvaluateConfig(exclude_seen=True))


def install(table: dict[str, stages.Stage]) -> None:
    """Put the fakes in the place of every stage of ``table``."""
    for name, stage in list(table.items()):
        outside = "fake_stages:fingerprint" if name == "prepare" else None
        table[name] = replace(
            stage,
            target=f"fake_stages:{name}",
            fingerprint=outside,
            extras={},
        )
        stage.config.libraries = ("pydantic",)


def fingerprint(config: Any) -> dict[str, str]:
    """The log's text is its own fingerprint."""
    return {"log": Path(config.source).read_text()}


def calls() -> list[str]:
    """Names of the stages that have begun, in order."""
    file = Path(os.environ["FAKE_CALLS"])
    return file.read_text().split() if file.exists() else []


def _fake(stage: str, config: Any, inputs: dict[str, Artefact], out: Path) -> Artefact:
    calls_file = Path(os.environ["FAKE_CALLS"])
    with draft(out) as work:
        with calls_file.open("a") as log:
            log.write(f"{stage}\n")
        (work.resume / "state.txt").write_text("half way")
        if (calls_file.parent / f"{stage}.wait").exists():
            time.sleep(0.5)
        crash = calls_file.parent / f"{stage}.crash"
        if crash.exists():
            raise {
                "memory": MemoryError,
                "full": lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
                "verdict": lambda: VerdictError("parity: no.", "Look."),
                "interrupt": KeyboardInterrupt,
            }.get(crash.read_text(), lambda: RuntimeError("tensors do not fit\nsecond line"))()
        gives = stages.STAGES[stage].gives
        metrics: dict[str, Any] = {}
        (work.path / "payload.bin").write_bytes(canonical([stage, config.model_dump(mode="json")]))
        if gives in ("model", "engine"):
            metrics = {"size_mb": 2.5, "parameters": 10}
        if stage == "teach":
            worse = {"outcome": "worse", "sentence": "mrr 0.1, not 0.2"}
            metrics["must_beat"] = (
                {"markov": worse} if (calls_file.parent / "teach.worse").exists() else {}
            )
        if stage == "prepare":
            metrics = {"users": USERS, "test_users": config.users or USERS, "valid_users": USERS}
            metrics["valid_repeats"] = 0.0
        if stage == "baselines":
            for name in ("popularity", "markov", "sasrec"):
                (work.path / name).mkdir()
                _measure(work.path / name, worse=0.0)
                (work.path / name / "per_user.parquet").rename(work.path / name / "test.parquet")
                metrics[name] = {"test": {"protocol": PROTOCOL}}
        if stage.startswith("evaluate"):
            made = inputs["model" if stage == "evaluate" else "engine"].manifest
            # A student's ranks are worse than its teacher's by a fixed amount.
            worse = {"teach": 0.0, "distill": 1.0, "export": 1.0, "sasrec": 1.0}[made.stage]
            _measure(work.path, worse=_ranks(config.split, made.config, worse))
        return work.seal(kind=gives, stage=stage, config=config, inputs=inputs, metrics=metrics)


def _ranks(split: str, config: dict[str, Any], default: float) -> float:
    """How much worse a model ranks, by ``ranks.json``."""
    file = Path(os.environ["FAKE_CALLS"]).parent / "ranks.json"
    for one in json.loads(file.read_text()) if file.exists() else []:
        if one["split"] == split and one["config"].items() <= config.items():
            return float(one["worse"])
    return default


def _measure(path: Path, *, worse: float) -> None:
    ranks = [1.0 + user % 5 + worse for user in range(USERS)]
    rows = range(USERS)
    pl.DataFrame(
        {
            "user": [str(user) for user in rows],
            "target": [1 + user % 9 for user in rows],
            "rank": ranks,
            "rank_unseen": ranks,
            "rank_sampled": [None] * USERS,
            "negatives": [None] * USERS,
            "ce": [2.0 + worse / 10 + user % 3 for user in rows],
            "ce_calibrated": [2.0 + worse / 10 + user % 3 for user in rows],
            "history": [5] * USERS,
            "count": [7] * USERS,
            "tail": [False] * USERS,
            "new": [False] * USERS,
            "same_time": [user % 4 == 0 for user in rows],
            "top_items": [list(range(1, 21))] * USERS,
            "top_scores": [[float(-i) for i in range(20)]] * USERS,
        },
        schema=SCHEMA,
    ).write_parquet(path / "per_user.parquet")
    none = {"users": 0, "share": 0.0}
    summary = {"protocol": PROTOCOL, "n": USERS, "repeats": none, "metrics": {}}
    (path / "metrics.json").write_bytes(canonical(summary))


def _named(stage: str) -> Any:
    def run(config: Any, inputs: dict[str, Artefact], out: Path) -> Artefact:
        return _fake(stage, config, inputs, out)

    return run


globals().update({name: _named(name) for name in stages.STAGES})
