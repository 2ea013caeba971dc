"""Which decoders of transformers can be a backbone: ``python benchmarks/decoders.py``.

Every decoder that transformers names for text is built small, with random weights, and given to
the checks that a backbone goes through before the first step; then its pruning and, with
``--export``, both layouts of an engine are tried. Prints the table of docs/decoders.md, which
``--write FILE`` puts there. Minutes on two cores; with ``--export`` a quarter of an hour.
"""

import argparse
import copy
import logging
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from slmc.compress.prune import width
from slmc.compress.prune.sizes import Kept
from slmc.compress.prune.width import FIND
from slmc.distill.student import fresh
from slmc.errors import SlmcError, UsageError
from slmc.model import backbone
from slmc.model.backbone import Backbone
from slmc.model.recommender import SequentialRecommender

LAYERS, ITEMS, HISTORY, DIM = 2, 30, 12, 16
SIZES = f"layers={LAYERS}&hidden=64&heads=4&kv_heads=2&intermediate=128"
OWN_SIZES = {"head_dim": "16"}
"""Sizes that some decoders want besides; tried where they do not load without."""
FAR = 1e-3
"""Largest difference of an engine's scores, relative to the largest: it is 1e-6 where right."""
HEAD = """# Decoders

Made by `python benchmarks/decoders.py{options} --write docs/decoders.md` with torch {torch} and
transformers {transformers}: small decoders with random weights. *heads* and *ffn* are what
`slmc prune` can cut{layouts}.

## {count} families work

"""
COLUMNS, LAYOUTS = ["heads", "ffn"], ["packed", "padded"]
REFUSED = """
## Refused at load, with exit 2

| family | why |
|---|---|
"""


def names(kind: str) -> list[str]:
    """Backbones to try for a kind."""
    plain = f"random://{kind}?{SIZES}"
    return [plain, *(f"{plain}&{name}={size}" for name, size in OWN_SIZES.items())]


def loaded(kind: str) -> Backbone | str:
    """A backbone of that kind, or why there is none."""
    why = ""
    for name in names(kind):
        try:
            backbone.check(name, history=HISTORY)
            return backbone.load(name)
        except SlmcError as error:
            why = why or error.what.removeprefix(f"backbone {name}: ")
    return why.removeprefix(f"{kind} ").rstrip(".")


def tried(action: Callable[[], object]) -> str:
    """Whether an action ends without an error."""
    try:
        action()
    except UsageError:
        return "no"
    except Exception as error:
        logging.getLogger("decoders").error("%s: %s", type(error).__name__, error)
        return "**fault**"
    return "yes"


def recommender(found: Backbone) -> SequentialRecommender:
    """A recommender on a copy of a backbone, with large weights around it."""
    torch.manual_seed(0)
    copied = replace(found, model=copy.deepcopy(found.model))
    return fresh(copied, torch.randn(ITEMS + 1, DIM), history=HISTORY).eval()


def prunes(found: Backbone, field: str) -> str:
    """Whether half of the units can be cut, and what is left is the masked model."""

    def cut() -> None:
        model = recommender(found)
        width.check_cuttable(model.backbone, field)
        config: Any = model.config.backbone_config
        units = [FIND[field](layer, config) for layer in model.layers]
        half = [tuple(range(len(one) // 2)) for one in units]
        kept = Kept(tuple(range(LAYERS)), {field: half})
        rows = torch.arange(1, HISTORY + 1)[None]
        with torch.inference_mode(), width.masked(model, kept):
            expected = model.user_vectors(rows)
        model = width.cut(model, kept)
        with torch.inference_mode():
            width.check_same(model.user_vectors(rows), expected, config.model_type)

    return tried(cut)


def exports(found: Backbone, layout: str) -> str:
    """Whether an engine gives the scores of the model."""
    import numpy as np
    import onnxruntime

    from slmc.data.batches import pad_left
    from slmc.export.graph import serialize
    from slmc.export.graph.optimize import to_onnx

    def compare() -> None:
        model = recommender(found)
        graph = to_onnx(model, layout, ITEMS, opset=20)
        rng = np.random.default_rng(0)
        rows = pad_left([rng.integers(1, ITEMS + 1, 1 + i) for i in range(HISTORY)])
        with tempfile.TemporaryDirectory() as folder:
            serialize.save(graph, Path(folder) / "model.onnx")
            session = onnxruntime.InferenceSession(Path(folder) / "model.onnx")
            items, scores = session.run(None, {"item_ids": rows})
        with torch.inference_mode():
            expected = model(torch.from_numpy(rows))[:, 1:].numpy()
        far = np.abs(np.take_along_axis(expected, items - 1, axis=1) - scores).max()
        if not far <= FAR * np.abs(expected).max():
            raise ValueError(f"the scores differ by {far:.1e}")

    return tried(compare)


def table(kinds: list[str], *, export: bool) -> str:
    """The page: families that work, then those that are refused."""
    columns = COLUMNS + LAYOUTS * export
    works: list[str] = []
    refused: dict[str, list[str]] = {}
    for kind in kinds:
        found = loaded(kind)
        if isinstance(found, str):
            refused.setdefault(found.replace("|", " "), []).append(kind)
            continue
        cells = [prunes(found, field) for field in COLUMNS]
        cells += [exports(found, layout) for layout in LAYOUTS if export]
        works.append(f"| {kind} | {' | '.join(cells)} |")
        print(works[-1], flush=True)
    head = HEAD.format(
        options=" --export" * export,
        torch=torch.__version__,
        transformers=transformers.__version__,
        layouts="; *packed* and *padded* are the layouts of `slmc export`" * export,
        count=len(works),
    )
    titles = [f"| family | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    reasons = [f"| {', '.join(names)} | {why} |" for why, names in refused.items()]
    return head + "\n".join(titles + works) + "\n" + REFUSED + "\n".join(reasons) + "\n"


if __name__ == "__main__":
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("kinds", nargs="*", help="model types; all if none")
    asked.add_argument("--export", action="store_true", help="try both layouts of an engine")
    asked.add_argument("--write", type=Path, metavar="FILE", help="put the page there")
    given = asked.parse_args()
    warnings.filterwarnings("ignore")
    logging.basicConfig(level=logging.ERROR)
    page = table(given.kinds or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES), export=given.export)
    if given.write:
        given.write.write_text(page)
    else:
        print(page)
