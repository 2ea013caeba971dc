"""The key of a step: equal keys, equal results; so a key that is in the cache need not be run."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from slmc.artefact import canonical, versions
from slmc.config import OUTSIDE_KEY, Placed, StageConfig
from slmc.stages import STAGES, Stage, resolve

Config = TypeVar("Config", bound=StageConfig)


@dataclass(frozen=True)
class Key:
    """What a step's result depends on, and its digest."""

    parts: dict[str, Any]
    """stage, schema, config, inputs, fingerprint and versions; JSON-able."""

    @property
    def digest(self) -> str:
        """SHA-256 of the parts, 64 hexadecimal digits; name of the artefact in the cache."""
        return hashlib.sha256(canonical(self.parts)).hexdigest()

    def changed(self, before: Mapping[str, Any]) -> list[str]:
        """Names of the parts that differ from ``before``, as in ``config.layers``."""
        old, new = _flat(before), _flat(self.parts)
        absent = object()  # a part that is null is not the same as one that is not there
        return [
            name for name in sorted(old | new) if old.get(name, absent) != new.get(name, absent)
        ]


@dataclass
class Outside:
    """What lies outside the recipe, looked up once in a run: data, backbones, the hardware."""

    _prints: dict[bytes, dict[str, str]] = field(default_factory=dict)
    _dtypes: dict[tuple[str, str], str] = field(default_factory=dict)

    def fingerprint(self, stage: Stage, config: StageConfig) -> dict[str, str]:
        """Name -> digest of the sources that the stage reads; empty for most stages.

        Raises:
            SlmcError: A source is not there, or its hash is not the one stated.
        """
        if stage.fingerprint is None:
            return {}
        asked = canonical([stage.fingerprint, config.model_dump(mode="json")])
        if asked not in self._prints:
            self._prints[asked] = resolve(stage.fingerprint)(config)
        return self._prints[asked]

    def resolved(self, config: Config) -> Config:
        """The config with ``dtype: auto`` replaced by what it means on this machine."""
        if not isinstance(config, Placed) or config.dtype != "auto":
            return config
        asked = config.device, config.dtype
        if asked not in self._dtypes:
            # Only here, so that a recipe that names its dtype is keyed without torch.
            from slmc.model.device import resolve_dtype

            self._dtypes[asked] = resolve_dtype(*asked)
        return config.model_copy(update={"dtype": self._dtypes[asked]})


def key_of(name: str, config: StageConfig, inputs: Mapping[str, str], outside: Outside) -> Key:
    """The key of a step.

    Args:
        name: Name of the stage.
        config: Its settings, with the dtype resolved.
        inputs: Role -> digest of the artefact taken in.
        outside: What lies outside the recipe.
    """
    stage = STAGES[name]
    return Key(
        {
            "stage": name,
            "schema": stage.schema,
            "config": _settings(config),
            "inputs": dict(sorted(inputs.items())),
            "fingerprint": outside.fingerprint(stage, config),
            "versions": versions(config.libraries),
        }
    )


def _settings(config: StageConfig) -> dict[str, Any]:
    """The settings of a config, and of those in it, that the result depends on; JSON-able.

    Left out are those that change where and how safely a stage computes, and what follows from
    what it gives.
    """
    dumped = config.model_dump(mode="json")
    kept = {}
    for name, known in type(config).model_fields.items():
        extra, value = known.json_schema_extra, getattr(config, name)
        if not (isinstance(extra, dict) and OUTSIDE_KEY.items() <= extra.items()):
            kept[name] = _settings(value) if isinstance(value, StageConfig) else dumped[name]
    return kept


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"config": {"layers": 4}}`` as ``{"config.layers": 4}``."""
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        path = f"{prefix}{name}"
        flat |= _flat(inner, f"{path}.") if isinstance(inner, Mapping) else {path: inner}
    return flat
