"""``--smoke``: the same steps, so small that the whole recipe runs in under a minute."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from slmc.compress.config import PruneConfig, QuantizeConfig
from slmc.config import CROSS_ENTROPIES, Protocol, Sampled, StageConfig, TrainConfig
from slmc.data.config import PrepareConfig
from slmc.distill.config import DistillConfig, MustBeat, TeachConfig
from slmc.distill.depth_config import DepthConfig
from slmc.export.config import BenchConfig, ExportConfig
from slmc.recipe.steps import COPY, Step
from slmc.training.config import SasrecConfig

Config = TypeVar("Config", bound=StageConfig)

BACKBONE = "random://llama?layers={}&hidden=64&heads=4&kv_heads=2&intermediate=128"
LAYERS = 2
MEASURED_LAYERS = LAYERS + 1
"""Layers of a model whose depth is measured, so that a student of that depth has blocks."""
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
    return _with(config, small)


def small_steps(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps with smaller values, all of which fit together."""
    measured = _measured(steps)
    layers: dict[str, int] = {}  # id as written -> fewest layers of its models, where known
    small = []
    for step in steps:
        config: StageConfig = shrunk(step.config)
        if step.written in measured:
            config = _with(config, _deeper(step.config))
        if isinstance(config, DepthConfig):
            teacher = layers.get(_written(step.inputs["teacher"]), 1)
            config = _with(config, {"depths": (teacher - 1,) if teacher > 1 else None})
            layers[step.written] = teacher - 1
        elif isinstance(config, DistillConfig) and not isinstance(config.layers, int):
            if layers.get(_written(step.inputs["depth"]), 1) == 1:
                # A student of one layer has no earlier block to supervise.
                losses = {**config.losses.model_dump(), "supervise": None}
                config = _with(config, {"losses": losses, "keep_heads": False})
        elif isinstance(config, TeachConfig | DistillConfig) and isinstance(config.layers, int):
            known = layers.get(step.written, config.layers)
            layers[step.written] = min(known, config.layers)
        small.append(replace(step, config=config))
    return tuple(small)


def _measured(steps: Sequence[Step]) -> set[str]:
    """Ids as written of the models whose depth is measured, and of those they are made from."""
    measured = {_written(step.inputs["teacher"]) for step in steps if step.stage == "depth"}
    for step in reversed(steps):
        if step.written in measured and step.gives == "model":
            measured |= {_written(taken) for taken in step.inputs.values()}
    return measured


def _deeper(config: StageConfig) -> dict[str, Any]:
    """Settings of a model whose depth is measured."""
    if isinstance(config, TeachConfig):
        return {
            "backbone": BACKBONE.format(MEASURED_LAYERS),
            "layers": min(config.layers or MEASURED_LAYERS, MEASURED_LAYERS),
        }
    if isinstance(config, DistillConfig) and isinstance(config.layers, int):
        return {
            "backbone": config.backbone and BACKBONE.format(MEASURED_LAYERS),
            "layers": min(config.layers, MEASURED_LAYERS),
        }
    return {}


def _written(reference: str) -> str:
    """Id as written of an input step."""
    return reference.partition(COPY)[0]


def _with(config: Config, values: dict[str, Any]) -> Config:
    return type(config).model_validate({**config.model_dump(), **values})


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
        "backbone": BACKBONE.format(LAYERS),
        "revision": None,
        "layers": min(config.layers or LAYERS, LAYERS),
        "prompt": None,
        "must_beat": must_beat and must_beat.model_dump(),
        "item_embeddings": "sasrec" if config.items_from_texts else config.item_embeddings,
        **WITHOUT_TEXTS,
    }


def _depth(config: DepthConfig) -> dict[str, Any]:
    # Each depth is within the budget, so that a step that reads the report goes on.
    budget = "100%" if config.metric not in CROSS_ENTROPIES else 100.0
    return {
        "max_drop": budget,
        "depths": None,
        "users": min(config.users, USERS),
        "histories": min(config.histories, USERS),
        "fit": {**config.fit.model_dump(), "epochs": 1},
    }


def _distill(config: DistillConfig) -> dict[str, Any]:
    layers = config.layers
    return {
        "layers": min(layers, LAYERS) if isinstance(layers, int) else layers.model_dump(),
        "blocks": min(config.blocks, LAYERS),
        "packings": 1,
        "backbone": config.backbone and BACKBONE.format(LAYERS),
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
