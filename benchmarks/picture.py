"""The way from log to engine, with the numbers of a run: ``python benchmarks/picture.py RUN``.

Reads ``metrics.json`` of a run's folder and the manifests of its steps, and follows the last engine
back to the log. Prints an SVG, which ``-o FILE`` writes; docs/way.svg is that of the quick start.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from slmc.report import numbers
from slmc.report.tables import Z

COLUMNS = 3
BOX, GAP, MARGIN = 252.0, 34.0, 20.0
"""Width of a box, space between two, space around all."""
TOP, HEIGHT, BETWEEN, LINE = 46.0, 126.0, 30.0, 19.0
"""First row, height of a box, space between two rows, height of a line of text."""
PARENT = ("student", "model", "engine", "teacher")
"""Role of the artefact that a step continues, the first that it has."""
TITLES = {
    "teach": "teacher",
    "distill": "student",
    "prune": "pruned",
    "quantize": "quantized",
    "export": "engine",
}
FIRST = "ndcg@10"
"""Metric of the boxes, unless the run does not have it."""
INTERVALS = "± is a two-sided 95 % interval, brackets are the gate's one-sided 95 % bounds"
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#24292f}.t{font-weight:600;font-size:15px}"
    ".s{fill:#57606a}.b{fill:#f6f8fa;stroke:#d0d7de}.c{fill:none;stroke:#d0d7de;"
    "stroke-dasharray:4 3}.a{fill:none;stroke:#0969da;stroke-width:2}.h{fill:#0969da}"
    ".p{fill:#ffffff}.good{fill:#1a7f37}.bad{fill:#cf222e}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.s{fill:#9198a1}.b{fill:#151b23;"
    "stroke:#3d444d}.c{stroke:#3d444d}.a{stroke:#4493f8}.h{fill:#4493f8}.p{fill:#0d1117}"
    ".good{fill:#3fb950}.bad{fill:#f85149}}"
)


@dataclass(frozen=True)
class Box:
    """One station: a title, the command that leads to it, and lines of text."""

    title: str
    command: str
    lines: tuple[str, ...]
    colour: str = ""
    """Class of the first line, if it has one."""


class Run:
    """The folder of a run."""

    def __init__(self, folder: Path) -> None:
        """Read ``metrics.json`` and the manifest of every step."""
        self.whole: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
        self.steps: dict[str, dict[str, Any]] = {s["id"]: s for s in self.whole["steps"]}
        self.by_digest = {step["digest"]: step["id"] for step in self.whole["steps"]}
        self.parents: dict[str, dict[str, str]] = {}
        for number, step_id in enumerate(self.steps, start=1):
            manifest = json.loads((folder / f"{number:02}-{step_id}/slmc.json").read_text())
            self.parents[step_id] = manifest["parents"]

    def chain(self) -> list[str]:
        """Ids of the last engine and of the models that it was made from, the first one first."""
        at: str | None = next(
            (i for i, step in reversed(self.steps.items()) if step["stage"] == "export"), None
        )
        ids: list[str] = []
        while at is not None:
            ids.append(at)
            parents = self.parents[at]
            digest = next((parents[role] for role in PARENT if role in parents), "")
            at = self.by_digest.get(digest)
        return ids[::-1]

    def evaluation(self, step_id: str) -> Mapping[str, Any] | None:
        """Metrics of a model, an engine or a baseline on test users; None if not measured."""
        if step_id in self.whole["evaluations"]:
            return self.whole["evaluations"][step_id]["metrics"]
        report = next((s["metrics"] for s in self.steps.values() if s["stage"] == "baselines"), {})
        measured = report.get(step_id, {}).get("test")
        return measured["metrics"] if measured else None

    def latency_ms(self, step_id: str) -> float | None:
        """Median latency at batch 1, from the last bench that timed it."""
        times = None
        for bench, step in self.steps.items():
            if step["stage"] != "bench" or "1" not in step["metrics"]["batches"]:
                continue
            for role, timed in step["metrics"]["batches"]["1"].items():
                if self.by_digest.get(self.parents[bench].get(role, "")) == step_id:
                    times = timed["latency_ms"]["p50"]
        return times


def boxes(run: Run) -> list[Box]:
    """The stations of the main way."""
    data = run.steps["prepare"]["metrics"]
    chain = run.chain()
    return [
        Box("log", "", (f"{data['rows']:,} rows",)),
        Box(
            "dataset",
            "prepare",
            (
                f"{data['users']:,} users",
                f"{data['items']:,} items",
                f"{data['interactions']:,} interactions",
            ),
        ),
        *(_model(run, step_id) for step_id in chain),
        _verdict(run, chain[-1] if chain else ""),
    ]


def _model(run: Run, step_id: str) -> Box:
    step = run.steps[step_id]
    metrics = step["metrics"]
    layers = f"{metrics['layers']} layers, " if metrics.get("layers") else ""
    lines = [
        f"{layers}{numbers.parameters(metrics.get('parameters'))} parameters",
        f"{numbers.megabytes(metrics.get('size_mb'))} MB",
        _ranking(run, step_id),
    ]
    if (latency := run.latency_ms(step_id)) is not None:
        where = "in ONNX Runtime" if step["stage"] == "export" else "in PyTorch"
        lines.append(f"p50 {numbers.milliseconds(latency)} ms {where}")
    return Box(TITLES.get(step["stage"], step_id), step["stage"], tuple(lines))


def _ranking(run: Run, step_id: str) -> str:
    metrics = run.evaluation(step_id) or {}
    if not metrics:
        return "not measured"
    name = FIRST if FIRST in metrics else next(iter(metrics))
    half = Z * metrics[name]["se"]
    return f"{name.upper()} {numbers.value(metrics[name]['value'], half)}"


def _verdict(run: Run, engine: str) -> Box:
    binding = [v for v in run.whole["verdicts"] if v["binding"]]
    passed = sum(not v["failed"] for v in binding)
    lines = [f"{passed} of {len(binding)} gates passed"]
    against = [
        v for v in binding if v["on"] == engine and v["change"] is not None and v["relative"]
    ]
    for v in against[:1]:
        change, low, high = (f"{100 * v[key]:+.1f}" for key in ("change", "low", "high"))
        name = TITLES.get(run.steps[v["baseline"]]["stage"], v["baseline"])
        lines.append(f"{v['gate']['metric'].upper()} {change} % [{low}, {high}]")
        lines.append(f"against the {name}, budget {v['gate']['max_drop']}")
    return Box("verdict", "validate", tuple(lines), "good" if passed == len(binding) else "bad")


def opponents(run: Run) -> list[str]:
    """What the run is compared with: baselines and controls, a line each."""
    lines = []
    for name in ("popularity", "markov", "sasrec"):
        if run.evaluation(name):
            size = run.steps.get(name, {}).get("metrics", {}).get("size_mb")
            extra = f", {numbers.megabytes(size)} MB" if size else ""
            lines.append(f"{name}: {_ranking(run, name)}{extra}")
    lines += [
        f"{step_id}: {_ranking(run, step_id)}"
        for step_id in run.steps
        if step_id.endswith(".control") and run.evaluation(step_id)
    ]
    return lines


def picture(run: Run) -> str:
    """The SVG: boxes in rows of three, and below them what the run is compared with."""
    stations, others = boxes(run), opponents(run)
    width = 2 * MARGIN + COLUMNS * BOX + (COLUMNS - 1) * GAP
    bottom = TOP + -(-len(stations) // COLUMNS) * (HEIGHT + BETWEEN) - 8
    height = bottom + (22 + LINE * _rows(others) + MARGIN if others else 0)
    parts = [_box(box, *_corner(i)) for i, box in enumerate(stations)]
    parts += [_arrow(i) for i in range(1, len(stations))]
    parts += _opponents(others, bottom, width)
    test = run.whole["evaluations"].get((run.chain() or [""])[-1], {})
    heading = f"slmc run {run.whole['recipe']}" + (f", {test['n']:,} test users" if test else "")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'role="img" aria-label="{escape(_spoken(stations))}"><style>{STYLE}</style>'
        f'<rect class="p" width="{width:.0f}" height="{height:.0f}" rx="8"/>'
        f'<text class="s" x="{MARGIN:.0f}" y="28">{escape(heading)}; {INTERVALS}</text>'
        f"{''.join(parts)}</svg>\n"
    )


def _spoken(stations: Sequence[Box]) -> str:
    return "; ".join(f"{box.title}: {', '.join(box.lines)}" for box in stations)


def _corner(index: int) -> tuple[float, float]:
    """Left and top of a box."""
    row, column = divmod(index, COLUMNS)
    return MARGIN + column * (BOX + GAP), TOP + row * (HEIGHT + BETWEEN)


def _text(x: float, y: float, text: str, style: str = "", anchor: str = "start") -> str:
    style = f' class="{style}"' if style else ""
    end = f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text{style}{end} x="{x:.0f}" y="{y:.0f}">{escape(text)}</text>'


def _box(box: Box, left: float, top: float) -> str:
    parts = [
        f'<rect class="b" x="{left:.0f}" y="{top:.0f}" width="{BOX:.0f}" height="{HEIGHT:.0f}" '
        f'rx="6"/>{_text(left + 12, top + 25, box.title, "t")}'
    ]
    if box.command:
        parts.append(_text(left + BOX - 12, top + 25, box.command, "s", "end"))
    for i, line in enumerate(box.lines):
        parts.append(_text(left + 12, top + 50 + i * LINE, line, "" if i else box.colour))
    return "".join(parts)


def _arrow(index: int) -> str:
    """The arrow into a box: from its left, or around the end of the row above it."""
    left, top = _corner(index)
    y = top + HEIGHT / 2
    if index % COLUMNS:
        path = f"M{left - GAP + 3:.0f} {y:.0f}H{left - 8:.0f}"
    else:
        before, above = _corner(index - 1)
        down, turn = top - BETWEEN / 2, left - MARGIN / 2
        path = f"M{before + BOX / 2:.0f} {above + HEIGHT + 2:.0f}V{down:.0f}H{turn:.0f}"
        path += f"V{y:.0f}H{left - 6:.0f}"
    head = f"M{left - 2:.0f} {y:.0f}l-8 -4.5v9z"
    return f'<path class="a" d="{path}"/><path class="h" d="{head}"/>'


def _rows(lines: Sequence[str]) -> int:
    return -(-len(lines) // 2)


def _opponents(lines: Sequence[str], top: float, width: float) -> list[str]:
    """What the run is compared with, two in a row, in a dashed frame."""
    if not lines:
        return []
    parts = [
        f'<rect class="c" x="{MARGIN:.0f}" y="{top:.0f}" width="{width - 2 * MARGIN:.0f}" '
        f'height="{22 + LINE * _rows(lines):.0f}" rx="6"/>',
        _text(MARGIN + 12, top + 25, "compared with", "s"),
    ]
    for i, line in enumerate(lines):
        parts.append(_text(MARGIN + 130 + (i % 2) * 340, top + 25 + (i // 2) * LINE, line))
    return parts


def main() -> None:
    """Print the picture, or write it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("-o", "--out", type=Path, help="write the picture to this file")
    options = parser.parse_args()
    text = picture(Run(options.run))
    if options.out is None:
        print(text, end="")
    else:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
