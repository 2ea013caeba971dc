"""``--smoke``: the same steps, so small that the whole recipe runs in under a minute."""

from collections.abc import Callable
from typing import Any, TypeVar

from slmc.compress.config import PruneConfig, QuantizeConfig
from slmc.config import CROSS_ENTROPIES, Protocol, Sampled, StageConfig, TrainConfig
from slmc.data.config import PrepareConfig
from slmc.distill.config import DistillConfig, MustBeat, TeachConfig
from slmc.distill.depth_config import DepthConfig
from slmc.export.config import BenchConfig, ExportConfig
from slmc.training.config import SasrecConfig

Config = TypeVar("Config", bound=StageConfig)

BACKBONE = "random://llama?layers=2&hidden=64&heads=4&kv_heads=2&intermediate=128"
LAYERS = 2
USERS = 96
HISTORY = 20
LEAST_SHARE = 0.25
ROUND_TO = 16
ROUNDS = 5
TOP_K = 20
"""Items that an evaluation keeps of each list, so an engine must return at least as many."""

WITHOUT_TEXTS = {"encoder": None, "encoder_revision": None, "id_dropout": 0.0}
"""An encoder is large, and the sample has fewer items than its vectors have directions."""


def shrunk(config: Config) -> Config:
    """The config with smaller values for everything that costs time."""
    small: dict[str, Any] = {}
    for kind, shrink in SHRINK.items():
        if isinstance(config, kind):
            small |= shrink(config)
    return type(config).model_validate({**config.model_dump(), **small})


def _train(config: TrainConfig) -> dict[str, Any]:
    return {"epochs": min(config.epochs, 1), "warmup": min(config.warmup, 2)}


def _prepare(config: PrepareConfig) -> dict[str, Any]:
    return {"users": min(config.users or USERS, USERS), "history": min(config.history, HISTORY)}


def _sasrec(config: SasrecConfig) -> dict[str, Any]:
    return {"item_embeddings": "ids", "encoder_layer": None, **WITHOUT_TEXTS}


def _teach(config: TeachConfig) -> dict[str, Any]:
    # A random backbone has no tokenizer, so no prompt, and it beats no baseline.
    must_beat = config.must_beat and MustBeat.model_validate(
        {**config.must_beat.model_dump(), "otherwise": "warn"}
    )
    return {
        "backbone": BACKBONE,
        "revision": None,
        "layers": min(config.layers or LAYERS, LAYERS),
        "prompt": None,
        "must_beat": must_beat and must_beat.model_dump(),
        "item_embeddings": "sasrec" if config.items_from_texts else config.item_embeddings,
        **WITHOUT_TEXTS,
    }


def _depth(config: DepthConfig) -> dict[str, Any]:
    # Every depth is within the budget, so that a step that reads it goes on.
    budget = "100%" if config.metric not in CROSS_ENTROPIES else 100.0
    return {
        "max_drop": budget,
        "depths": None,
        "users": min(config.users, USERS),
        "histories": min(config.histories, USERS),
        "fit": {**config.fit.model_dump(), "epochs": 1},
    }


def _distill(config: DistillConfig) -> dict[str, Any]:
    if not isinstance(config.layers, int):
        # A depth step may choose one layer, which has no earlier block to supervise.
        losses = {**config.losses.model_dump(), "supervise": None}
        return {
            "losses": losses,
            "keep_heads": False,
            "packings": 1,
            "backbone": config.backbone and BACKBONE,
            "revision": None,
        }
    return {
        "layers": min(config.layers, LAYERS),
        "blocks": min(config.blocks, LAYERS),
        "packings": 1,
        "backbone": config.backbone and BACKBONE,
        "revision": None,
    }


def _prune(config: PruneConfig) -> dict[str, Any]:
    # The small backbone has few units: each share must remove some and keep some.
    return {
        "layers": config.layers and min(config.layers, LAYERS),
        "exit_block": config.exit_block and 1,
        "heads": config.heads and max(config.heads, LEAST_SHARE),
        "ffn": config.ffn and max(config.ffn, LEAST_SHARE),
        "round_to": min(config.round_to, ROUND_TO),
        "calibration": min(config.calibration, USERS),
    }


def _quantize(config: QuantizeConfig) -> dict[str, Any]:
    # An assignment may name layers that the small backbone does not have.
    return {
        "group_size": min(config.group_size, ROUND_TO),
        "assign": {},
        "calibration": min(config.calibration, USERS),
    }


def _protocol(config: Protocol) -> dict[str, Any]:
    if isinstance(config.ranking, Sampled):
        return {"ranking": {"sampled": min(config.ranking.sampled, 50)}}
    return {}


def _export(config: ExportConfig) -> dict[str, Any]:
    histories = min(config.parity.histories, USERS)
    lengths = tuple(min(length, HISTORY) for length in config.tensorrt.length)
    return {
        "top_k": min(config.top_k, TOP_K),
        "items": None,  # new items need texts, or neighbours in the whole log
        "cooccurrence": None,
        "replace": False,
        "index": None,  # exact search is faster in a small catalogue
        "index_recall": ExportConfig.model_fields["index_recall"].default,
        "parity": {**config.parity.model_dump(), "histories": histories},
        "tensorrt": {**config.tensorrt.model_dump(), "length": lengths},
    }


def _bench(config: BenchConfig) -> dict[str, Any]:
    return {"rounds": min(config.rounds, ROUNDS), "warmup": min(config.warmup, 1)}


SHRINK: dict[type[StageConfig], Callable[[Any], dict[str, Any]]] = {
    TrainConfig: _train,
    PrepareConfig: _prepare,
    SasrecConfig: _sasrec,
    TeachConfig: _teach,
    DepthConfig: _depth,
    DistillConfig: _distill,
    PruneConfig: _prune,
    QuantizeConfig: _quantize,
    Protocol: _protocol,
    ExportConfig: _export,
    BenchConfig: _bench,
}
