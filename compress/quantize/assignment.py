"""Assign bits to the linear layers before quantization."""

import difflib
import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from torch import nn

from slmc.compress.config import QuantizeConfig
from slmc.errors import UsageError

SMALLEST_GROUP = 8


def assign(config: QuantizeConfig, model: nn.Module) -> dict[str, int]:
    """Return the bits of each linear layer to quantize, by full name, in the model's order.

    Raises:
        UsageError: A name in ``ignore`` or ``assign`` matches no linear layer, nothing is left to
            quantize, or the group size does not divide an input width.
    """
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    _check_ignore(config.ignore, linears)
    _check_patterns(config.assign, linears)
    bits: dict[str, int] = {}
    for name in linears:
        if not ignored(name, config.ignore):
            width = _width(name, config)
            if isinstance(width, int):
                bits[name] = width
    if not bits and config.item_table is None:
        raise UsageError(
            "quantize: ignore and assign leave no linear layer to quantize.",
            "Remove a name from them, or set item_table to int8 or int4.",
        )
    _check_groups(config.group_size, {name: linears[name].in_features for name in bits})
    return bits


def ignored(name: str, suffixes: Iterable[str]) -> bool:
    """Return whether a layer's name is one of ``suffixes``, or ends with a dot and one of them."""
    return any(name == suffix or name.endswith(f".{suffix}") for suffix in suffixes)


def _width(name: str, config: QuantizeConfig) -> int | str:
    width: int | str = config.bits
    for pattern, assigned in config.assign.items():
        if fnmatchcase(name, pattern):
            width = assigned
    return width


def _check_ignore(suffixes: Iterable[str], names: Iterable[str]) -> None:
    for suffix in suffixes:
        if not any(ignored(name, [suffix]) for name in names):
            ends = {".".join(name.split(".")[-k:]) for name in names for k in (1, 2)}
            _refuse("ignore", suffix, "ends with it", ends | set(names))


def _check_patterns(patterns: Mapping[str, object], names: Iterable[str]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            ends = {f"*.{name.split('.')[-1]}" for name in names}
            _refuse("assign", pattern, "matches it", ends | set(names))


def _refuse(key: str, name: str, how: str, names: Iterable[str]) -> None:
    near = difflib.get_close_matches(name, sorted(names), n=3, cutoff=0.5)
    remedy = f"Did you mean {', '.join(near)}?" if near else f"The names are {_some(names)}."
    raise UsageError(f"{key}: {name!r}: no linear layer of the model {how}.", remedy)


def _some(names: Iterable[str]) -> str:
    return ", ".join(sorted({name.split(".")[-1] for name in names}))


def _check_groups(size: int, widths: Mapping[str, int]) -> None:
    misfits = {name: width for name, width in widths.items() if width % size}
    if not misfits:
        return
    name, width = next(iter(misfits.items()))
    common = math.gcd(*widths.values())
    fitting = [n for n in range(SMALLEST_GROUP, common + 1) if common % n == 0]
    remedy = f"Sizes that divide the inputs of every layer: {', '.join(map(str, fitting))}."
    if not fitting:
        remedy = "No size divides the inputs of every layer: add layers with odd widths to ignore."
    raise UsageError(
        f"group_size: {size} does not divide the {width} inputs of {name}"
        f"{f' ({len(misfits)} layers in all)' if len(misfits) > 1 else ''}.",
        remedy,
    )
