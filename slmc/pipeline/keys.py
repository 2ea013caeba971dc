"""The key of a step. Equal keys mean equal results, so a step whose key is cached is not run."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic.fields import FieldInfo

from slmc.artefact import canonical, versions
from slmc.config import IN_KEY_IF_SET, OUTSIDE_KEY, Placed, StageConfig
from slmc.stages import STAGES, Stage, resolve

Config = TypeVar("Config", bound=StageConfig)


@dataclass(frozen=True)
class Key:
    """Everything that a step's result depends on, and the digest of it."""

    parts: dict[str, Any]
    """stage, schema, config, inputs, fingerprint and versions, as JSON data."""

    @property
    def digest(self) -> str:
        """SHA-256 of the parts, 64 hexadecimal digits; name of the artefact in the cache."""
        return hashlib.sha256(canonical(self.parts)).hexdigest()

    def changed(self, before: Mapping[str, Any]) -> list[str]:
        """Names of the parts that differ from ``before``, such as ``config.layers``."""
        old, new = _flat(before), _flat(self.parts)
        absent = object()  # a null part differs from an absent one
        return [
            name for name in sorted(old | new) if old.get(name, absent) != new.get(name, absent)
        ]


@dataclass
class Outside:
    """Inputs outside of the recipe, each read once per run: data, backbones, hardware."""

    _prints: dict[bytes, dict[str, str]] = field(default_factory=dict)
    _dtypes: dict[tuple[str, str], str] = field(default_factory=dict)

    def fingerprint(self, stage: Stage, config: StageConfig) -> dict[str, str]:
        """Name -> digest of the sources that the stage reads; empty for most stages.

        Raises:
            SlmcError: A source does not exist, or its hash is not the configured one.
        """
        if stage.fingerprint is None:
            return {}
        request = canonical([stage.fingerprint, config.model_dump(mode="json")])
        if request not in self._prints:
            self._prints[request] = resolve(stage.fingerprint)(config)
        return self._prints[request]

    def resolved(self, config: Config) -> Config:
        """The config with ``dtype: auto`` replaced by the dtype of this machine."""
        if not isinstance(config, Placed) or config.dtype != "auto":
            return config
        request = config.device, config.dtype
        if request not in self._dtypes:
            # Imported here, so that a recipe with an explicit dtype needs no torch for its keys.
            from slmc.model.device import resolve_dtype

            self._dtypes[request] = resolve_dtype(*request)
        return config.model_copy(update={"dtype": self._dtypes[request]})


def key_of(name: str, config: StageConfig, inputs: Mapping[str, str], outside: Outside) -> Key:
    """The key of a step.

    Args:
        name: Name of the stage.
        config: Its settings, with the dtype resolved.
        inputs: Role -> digest of the input artefact.
        outside: Inputs outside of the recipe.
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
    """The settings on which the result depends, also those of nested configs, as JSON data.

    Settings marked with :data:`OUTSIDE_KEY`, such as the device, are left out, and so are those
    marked with :data:`IN_KEY_IF_SET` that have their default.
    """
    dumped = config.model_dump(mode="json")
    kept = {}
    for name, known in type(config).model_fields.items():
        value = getattr(config, name)
        is_default = value == known.get_default(call_default_factory=True)
        if not _marked(known, OUTSIDE_KEY) and not (_marked(known, IN_KEY_IF_SET) and is_default):
            kept[name] = _settings(value) if isinstance(value, StageConfig) else dumped[name]
    return kept


def _marked(field: FieldInfo, mark: Mapping[str, Any]) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and mark.items() <= extra.items()


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"config": {"layers": 4}}`` as ``{"config.layers": 4}``."""
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        path = f"{prefix}{name}"
        flat |= _flat(inner, f"{path}.") if isinstance(inner, Mapping) else {path: inner}
    return flat
