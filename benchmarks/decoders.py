"""Which decoders of transformers can be a backbone: ``python benchmarks/decoders.py``.

Every text decoder of transformers is built small, with random weights, and checked like a
backbone before the first step; then it is pruned and, with ``--export``, exported in both layouts.
Prints the table of docs/decoders.md; ``--write FILE`` writes it to a file. Takes minutes on two
cores, with ``--export`` a quarter of an hour.
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
"""Sizes that some decoders also need; tried if they do not load without."""
FAR = 1e-3
"""Largest difference of scores, relative to the largest score; rounding gives 1e-6."""
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
    """Return the names of backbones to try for a kind."""
    plain = f"random://{kind}?{SIZES}"
    return [plain, *(f"{plain}&{name}={size}" for name, size in OWN_SIZES.items())]


def loaded(kind: str) -> Backbone | str:
    """Return a backbone of a kind, or the reason why it is refused."""
    why = ""
    for name in names(kind):
        try:
            backbone.check(name, history=HISTORY)
            return backbone.load(name)
        except SlmcError as error:
            why = why or error.what.removeprefix(f"backbone {name}: ")
    return why.removeprefix(f"{kind} ").rstrip(".")


def tried(action: Callable[[], object]) -> str:
    """Return whether an action ends without an error, as a cell of the table."""
    try:
        action()
    except UsageError:
        return "no"
    except Exception as error:
        logging.getLogger("decoders").error("%s: %s", type(error).__name__, error)
        return "**fault**"
    return "yes"


def recommender(source: Backbone) -> SequentialRecommender:
    """Build a recommender on a copy of a backbone, with a random item table."""
    torch.manual_seed(0)
    copied = replace(source, model=copy.deepcopy(source.model))
    return fresh(copied, torch.randn(ITEMS + 1, DIM), history=HISTORY).eval()


def prunes(source: Backbone, field: str) -> str:
    """Return whether half of the units can be cut, with the result of masking them."""

    def cut() -> None:
        model = recommender(source)
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


def exports(source: Backbone, layout: str) -> str:
    """Return whether an engine gives the scores of the model."""
    import numpy as np
    import onnxruntime

    from slmc.data.batches import pad_left
    from slmc.export.graph import serialize
    from slmc.export.graph.optimize import to_onnx

    def compare() -> None:
        model = recommender(source)
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
    """Return the page: families that work, then those that are refused."""
    columns = COLUMNS + LAYOUTS * export
    works: list[str] = []
    refused: dict[str, list[str]] = {}
    for kind in kinds:
        source = loaded(kind)
        if isinstance(source, str):
            refused.setdefault(source.replace("|", " "), []).append(kind)
            continue
        cells = [prunes(source, field) for field in COLUMNS]
        cells += [exports(source, layout) for layout in LAYOUTS if export]
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", help="model types; default: all")
    parser.add_argument("--export", action="store_true", help="try both layouts of an engine")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page to a file")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.basicConfig(level=logging.ERROR)
    page = table(
        arguments.kinds or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES), export=arguments.export
    )
    if arguments.write:
        arguments.write.write_text(page)
    else:
        print(page)
