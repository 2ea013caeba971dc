"""The card of an engine, its ``README.md``: what it is, its parity check, code that runs it."""

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

{layers} layers, {parameters:.1f} million parameters, {num_items:,} items. Serving it takes \
{size_mb:.1f} MB
(`onnx/`, `items.jsonl`, `preprocessor.json`).

Run this code in this folder; it needs only `onnxruntime` and `numpy`:

```python
{code}```

- Input `item_ids`: int64 [batch, length], rows 1 to {num_items} of `items.jsonl`, oldest first,
  padded with 0 on the left. The engine uses the newest {history} items of a history and refuses
  other rows. All histories without items get the same answer; a batch of 0 gives 0 rows.
- Outputs `top_items` int64 [batch, {top_k}] and `top_scores` float32 [batch, {top_k}], best first;
  ties go to the smaller row. The output can contain items of the history.
- `onnx/masked.onnx` uses the weights of `onnx/model.onnx` and has two more inputs:
  `exclude_seen`, bool [1 or batch], excludes the items of a history (`[False]`: no items);
  `allowed`, bool [1 or batch, {num_items} + 1], marks the rows that may be returned (`[[True]]`:
  all). If fewer than {top_k} rows are allowed, the list is filled up with scores of -inf.
- Layout {layout}, opset {opset}, {precision}.

## Parity with the source model

| batch | length | histories | score error / spread | overlap of the top {top_k} |
|---|---|---|---|---|
{shapes}
Limits: {max_error:g} and {min_overlap:.2%}. Source model: digest `{source}`.
"""


def write(folder: Path, metrics: dict[str, Any], parity: dict[str, Any]) -> None:
    """Write the card into the folder of an engine whose other files are complete.

    Args:
        folder: The engine's folder.
        metrics: ``size_mb``, ``parameters`` and ``layers``.
        parity: The content of ``parity.json``.
    """
    engine = json.loads((folder / "engine.json").read_text())
    items = Vocabulary.open(folder / FILE).items
    history = ", ".join(json.dumps(item, ensure_ascii=False) for item in items[:2])
    shapes = "".join(
        f"| {s['batch']} | {s['columns']} ({s['lengths']}) | {s['histories']} "
        f"| {s['max_error']:.1e} | {s['overlap']:.2%} |\n"
        for s in parity["shapes"]
    )
    names = ("layout", "top_k", "opset", "precision", "history", "num_items", "source")
    text = TEXT.format(
        **{name: engine[name] for name in names},
        code=CODE.format(
            history=history,
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
