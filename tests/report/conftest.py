"""One small run, finished, with everything that a report can show."""

from pathlib import Path

import pytest

from slmc import pipeline, recipe
from slmc.commands import console
from slmc.pipeline import RunResult
from slmc.report import write

RECIPE = """
version: 1
name: small
description: "A <b>small</b> run | with marks"
data: {{source: {log}, history: 10}}
steps:
- sasrec: {{epochs: 4, dim: 16, rows: 16, warmup: 5, dtype: fp32}}
- teach:
    backbone: "random://llama?layers=2&hidden=32&heads=4&kv_heads=2&intermediate=64"
    epochs: 3
    lr: 3e-3
    rows: 8
    warmup: 5
    dtype: fp32
    must_beat: {{otherwise: warn}}
    control: true
- depth: {{ways: [first], histories: 20, max_drop: 50%}}
- distill: {{layers: 2, blocks: 2, epochs: 1, lr: 3e-3, rows: 8, dtype: fp32, control: true}}
- export: {{id: sasrec-engine, model: sasrec, top_k: 20}}
- export: {{top_k: 20}}
- bench: {{rounds: 3, warmup: 0}}
gates:
- {{metric: ndcg@10, baseline: teach, max_drop: 0%}}
- {{metric: overlap@10, baseline: source, min: 0.99}}
- {{metric: size_mb, max: 64}}
- {{metric: ndcg@10, on: sasrec-engine, baseline: sasrec, max_drop: 1%}}
"""


@pytest.fixture(scope="session")
def finished(
    log_csv: Path, traced_once: None, tmp_path_factory: pytest.TempPathFactory
) -> RunResult:
    folder = tmp_path_factory.mktemp("run")
    file = folder / "small.yaml"
    file.write_text(RECIPE.format(log=log_csv))
    run_dir = folder / "out"
    with console.session(quiet=True) as lines:
        return pipeline.run(
            recipe.load(file),
            run_dir=run_dir,
            report=write,
            on_step=lambda _: lines.open(run_dir / "log.jsonl"),
        )
