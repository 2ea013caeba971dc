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
{new_items}{index}
## Parity with the source model

| batch | length | histories | score error / spread | overlap of the top {top_k} |
|---|---|---|---|---|
{shapes}
Limits: {max_error:g} and {min_overlap:.2%}. Source model: digest `{source}`.
"""


NEW_ITEMS = {
    "texts": "made from their texts",
    "neighbours": "the mean vectors of neighbours that were named",
    "co-occurrence": "the mean vectors of items that users took next to them",
    "vectors": "vectors that were given",
}
"""Where the vectors of new items come from."""

INDEX = """\

## Approximate search

`index/items.faiss` ({size_mb:.1f} MB, {setting}) finds {recall:.1%} of the {shown} best of
{items:,} items, measured on {histories} histories. With one thread a history takes {index_ms:.2f}
ms with it and {exact_ms:.2f} ms with `onnx/model.onnx`, {speedup:.1f} times as long. Entry p of the
index belongs to row p + 1. Continue the code above (`pip install faiss-cpu`):

```python
import faiss

users = onnxruntime.InferenceSession("onnx/users.onnx")
index = faiss.read_index("index/items.faiss")
(vectors,) = users.run(None, {{"item_ids": item_ids}})
vectors = np.pad(vectors, ((0, 0), (0, index.d - vectors.shape[1])))
_, places = index.search(vectors, {shown} + len(history))  # more, to leave seen items out
found = [items[place]["item"] for place in places[0] if place >= 0]
print([item for item in found if item not in history][:{shown}])
```
"""


def write(folder: Path, metrics: dict[str, Any], parity: dict[str, Any]) -> None:
    """Write the card into the folder of an engine whose other files are complete.

    Args:
        folder: The engine's folder.
        metrics: ``size_mb``, ``parameters`` and ``layers``; ``new_items`` and ``index`` if the
            engine has them.
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
        new_items=_new_items(metrics.get("new_items")),
        index=_index(metrics.get("index"), min(10, engine["top_k"])),
        max_error=parity["allowed"]["max_error"],
        min_overlap=parity["allowed"]["min_overlap"],
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _new_items(new: dict[str, Any] | None) -> str:
    """A line about items that the model was not trained on."""
    if new is None:
        return ""
    replaced = f"; {new['replaced']:,} others got new vectors" if new["replaced"] else ""
    return (
        f"- {new['added']:,} items are newer than the model{replaced}. They were not trained: "
        f"their vectors\n  are {NEW_ITEMS[new['by']]}.\n"
    )


def _index(index: dict[str, Any] | None, shown: int) -> str:
    """A section about the index."""
    if index is None:
        return ""
    setting = ", ".join(f"{name} {value}" for name, value in index["setting"].items())
    names = ("size_mb", "items", "histories")
    return INDEX.format(
        **{name: index[name] for name in names},
        **index["latency"]["1"],
        setting=setting,
        recall=index[f"recall@{shown}"],
        shown=shown,
    )
