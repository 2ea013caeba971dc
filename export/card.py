"""The card of an engine, its ``README.md``: what it is, how it was proven, how to ask it."""

import json
from pathlib import Path
from typing import Any

from slmc.export.vocabulary import FILE, Vocabulary

CODE = """\
import json

import numpy as np
import onnxruntime

items = [json.loads(line) for line in open("items.jsonl", encoding="utf-8")]
row = {{item["item"]: item["row"] for item in items}}
{session}history = [{history}]  # oldest first; ids that are not in items.jsonl are skipped
item_ids = np.array([[row[item] for item in history if item in row]], dtype=np.int64)
top_items, top_scores = session.run(None, {{"item_ids": item_ids}})
for best, score in zip(top_items[0, :{shown}], top_scores[0]):
    print(f"{{score:7.3f}}", items[best - 1]["item"], items[best - 1].get("title", ""))
"""

SESSION = """\
session = onnxruntime.InferenceSession("onnx/model.onnx")
"""
SESSION_INT8 = """\
options = onnxruntime.SessionOptions()
options.add_session_config_entry("session.x64quantprecision", "1")  # for processors without VNNI
session = onnxruntime.InferenceSession("onnx/model.onnx", options)
"""

TEXT = """\
---
library_name: onnxruntime
tags: [recommendation, sequential-recommendation, slmc]
---
# A sequential recommender as an ONNX engine

{layers} layers, {parameters:.1f} million parameters, {num_items:,} items; {size_mb:.1f} MB are \
needed to serve it
(`onnx/`, `items.jsonl`, `preprocessor.json`).

Run in this folder, with `onnxruntime` and `numpy` alone:

```python
{code}```

- Input `item_ids`: int64 [batch, length], rows 1 to {num_items} of `items.jsonl`, oldest first,
  padded with 0 on the left; the newest {history} of a history count. Other rows are refused. A
  history without items has an answer too, the same for all of them; a batch of 0 has one of 0 rows.
- Outputs `top_items` int64 [batch, {top_k}] and `top_scores` float32 [batch, {top_k}], best first;
  ties go to the smaller row. Items of the history are among them.
- `onnx/masked.onnx` reads the weights of `onnx/model.onnx` beside it and takes two inputs more:
  `exclude_seen`, bool [1 or batch], leaves out the items of a history (`[False]`: nothing);
  `allowed`, bool [1 or batch, {num_items} + 1], says which rows may be given (`[[True]]`: all).
  Where fewer than {top_k} may be given, scores of -inf stand behind them.
- Layout {layout}, opset {opset}, {precision}.

## Parity with the model that it was made from

| batch | length | histories | score error / spread | overlap of the top {top_k} |
|---|---|---|---|---|
{shapes}
Allowed: {max_error:g} and {min_overlap:.2%}. Model: digest `{source}`.
"""


def write(folder: Path, metrics: dict[str, Any], parity: dict[str, Any]) -> None:
    """Write the card into an engine's folder, whose other files are there.

    Args:
        folder: Of the engine.
        metrics: ``size_mb``, ``parameters`` and ``layers``.
        parity: The body of ``parity.json``.
    """
    engine = json.loads((folder / "engine.json").read_text())
    items = Vocabulary.open(folder / FILE).items
    shown = ", ".join(json.dumps(item, ensure_ascii=False) for item in items[:2])
    shapes = "".join(
        f"| {s['batch']} | {s['columns']} ({s['lengths']}) | {s['histories']} "
        f"| {s['max_error']:.1e} | {s['overlap']:.2%} |\n"
        for s in parity["shapes"]
    )
    names = ("layout", "top_k", "opset", "precision", "history", "num_items", "source")
    text = TEXT.format(
        **{name: engine[name] for name in names},
        code=CODE.format(
            history=shown,
            shown=min(10, engine["top_k"]),
            session=SESSION_INT8 if engine["precision"] == "int8" else SESSION,
        ),
        layers=metrics["layers"],
        parameters=metrics["parameters"] / 1e6,
        size_mb=metrics["size_mb"],
        shapes=shapes,
        max_error=parity["allowed"]["max_error"],
        min_overlap=parity["allowed"]["min_overlap"],
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def code_of(card: str) -> str:
    """The Python code of a card."""
    return card.split("```python\n", 1)[1].split("```", 1)[0]
