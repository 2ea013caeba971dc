"""Options of the command line from the configs: one for each field, of the same name.

``--layers 4``, ``--losses.norm 0.1``: values are read as in a recipe, lists are repeated or
comma-separated, truth values are flags. What pydantic says against them is told by option.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from slmc.errors import UsageError
from slmc.recipe.checks import members, models_at, reasons
from slmc.recipe.faults import Faults
from slmc.recipe.text import parse, scalar

Model = TypeVar("Model", bound=BaseModel)
Function = Callable[..., int | None]
PANEL = "Settings"
METAVARS = {
    str: "TEXT",
    int: "INT",
    float: "FLOAT",
    bool: "true|false",
    date: "YYYY-MM-DD",
    dict: "NAME=VALUE,…",
}
"""Type of a setting -> what its help shows."""


@dataclass(frozen=True)
class Setting:
    """A field of a config as an option."""

    path: tuple[str, ...]
    help: str
    metavar: str | None
    flag: bool
    many: bool
    text: bool
    """Whether the value is text whatever it looks like."""
    mapping: bool = False
    """Whether a whole mapping may be given too."""

    @property
    def option(self) -> str:
        """``--losses.norm``."""
        return "--" + ".".join(self.path).replace("_", "-")

    @property
    def parameter(self) -> str:
        """A Python name for the value."""
        return "set__" + "__".join(self.path)


def settings(config: type[BaseModel], skip: tuple[str, ...] = ()) -> list[Setting]:
    """The options of a config, nested fields with dots.

    Args:
        config: The config.
        skip: Fields at its top that are given in another way.
    """
    found: dict[tuple[str, ...], Setting] = {}
    _collect(config, (), None, found)
    return [one for path, one in found.items() if path[0] not in skip]


def _collect(
    config: type[BaseModel],
    at: tuple[str, ...],
    default: BaseModel | None,
    found: dict[tuple[str, ...], Setting],
) -> None:
    for name, field in config.model_fields.items():
        path = (*at, name)
        usual = getattr(default, name, None) if default is not None else field.get_default()
        arms = members(field.annotation)
        if plain := [a for a in arms if not _is_model(a)]:
            # A nested config that may be absent is taken away with `null`.
            said = " ".join((field.description or "").split())
            made = _setting(path, said, plain, usual, nested=len(plain) < len(arms))
            before = found.get(path)
            if before is not None and made.metavar not in (before.metavar or "").split("|"):
                # Two kinds of a nested config have it, such as split.by.
                made = replace(before, metavar=f"{before.metavar}|{made.metavar}")
            found[path] = made
        for inner in models_at(config, (name,)):
            _collect(inner, path, usual if isinstance(usual, inner) else None, found)


def _setting(
    path: tuple[str, ...], said: str, arms: list[Any], default: Any, *, nested: bool
) -> Setting:
    many = any(get_origin(arm) is tuple for arm in arms)
    flag = arms == [bool]
    inner = [get_args(arm)[0] if get_origin(arm) is tuple else arm for arm in arms]
    leaves = [leaf for arm in inner for leaf in members(arm) if leaf is not type(None)]
    shown = "" if default is PydanticUndefined or isinstance(default, BaseModel) else default
    if isinstance(shown, tuple):
        shown = ",".join(str(item) for item in shown)
    tail = "  [required]" if default is PydanticUndefined else f"  [default: {_plain(shown)}]"
    kinds = (
        [_metavar(leaf) for leaf in leaves] + ["MAPPING"] * nested + ["null"] * (type(None) in arms)
    )
    metavar = None if flag else "|".join(kinds)
    text = bool(leaves) and set(leaves) <= {str}
    return Setting(path, said + tail * (shown != ""), metavar, flag, many, text, nested)


def _plain(value: Any) -> str:
    """A value as it would be typed."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _metavar(leaf: Any) -> str:
    if get_origin(leaf) is Literal:
        return "|".join(str(choice) for choice in get_args(leaf))
    return METAVARS.get(get_origin(leaf) or leaf, "VALUE")


def build(
    config: type[Model], given: Mapping[tuple[str, ...], Any], command: str, **known: Any
) -> Model:
    """The config that the given options make.

    Args:
        config: The config.
        given: Path of a field -> what was said; None or an empty list where nothing was.
        command: The command, for the message.
        known: Fields that are not options.

    Raises:
        UsageError: Values are refused; every option with its reason.
    """
    raw: dict[str, Any] = dict(known)
    for one in settings(config):
        said = given.get(one.path)
        if said is not None and said != []:
            _put(config, raw, one.path, _value(one, said))
    made, wrong = reasons(config, raw)
    if made is None:
        faults = [f"{_option(reason.path)}{_worded(reason.what)}" for reason in wrong]
        raise UsageError("; ".join(faults), f"See `{command} --help`.")
    return made


def _value(one: Setting, said: Any) -> Any:
    if one.flag:
        return said
    if one.mapping and said.startswith("{"):
        faults = Faults()
        read = parse(said, one.option, {}, faults).value
        return said if faults else read
    if one.many:
        words = [word.strip() for text in said for word in text.strip("[]").split(",")]
        if words == ["null"]:
            return None
        return [word if one.text else scalar(word) for word in words if word]
    return said if one.text and said != "null" else scalar(said)


def _put(config: type[BaseModel], raw: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Set a nested field; those beside it keep their defaults, as ``--set`` has it."""
    model: type[BaseModel] | None = config
    for name in path[:-1]:
        inner = raw.get(name)
        if not isinstance(inner, dict):
            field = model.model_fields.get(name) if model is not None else None
            usual = field.get_default() if field is not None else None
            inner = usual.model_dump(exclude_none=True) if isinstance(usual, BaseModel) else {}
            raw[name] = inner
        inside = models_at(model, (name,)) if model is not None else []
        model, raw = (inside[0] if inside else None), inner
    raw[path[-1]] = value


def _worded(what: str) -> str:
    # Every option is a field, so a field that is not known belongs to another kind of its config.
    unknown = what.startswith("there is no key")
    return "does not go with the other settings of this kind" if unknown else what


def _option(path: tuple[str | int, ...]) -> str:
    names = [str(part) for part in path if not isinstance(part, int)]
    return f"--{'.'.join(names).replace('_', '-')}: " if names else ""


def configured(
    config: type[BaseModel], command: str, skip: tuple[str, ...] = ()
) -> Callable[[Function], Function]:
    """Give a command the options of a config; the function gets it made, as ``config``.

    Where a field is in ``skip``, the function gets a ``build`` in its place: the config of the
    options and of the fields that it names.
    """
    options = settings(config, skip)

    def decorate(function: Function) -> Function:
        own = [
            parameter
            for name, parameter in inspect.signature(function).parameters.items()
            if name not in ("config", "make")
        ]

        def call(**values: Any) -> int | None:
            given = {one.path: values.pop(one.parameter) for one in options}
            if skip:
                return function(
                    make=lambda **known: build(config, given, command, **known), **values
                )
            return function(config=build(config, given, command), **values)

        return signed(call, [*own, *map(_parameter, options)], function)

    return decorate


def signed(call: Function, parameters: list[inspect.Parameter], model: Function) -> Function:
    """Give ``call`` a signature for Typer, and name and help of ``model``."""
    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    call.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in keyword}
    call.__name__, call.__doc__ = model.__name__, model.__doc__
    return call


def _parameter(one: Setting) -> inspect.Parameter:
    declared = f"{one.option}/--no-{one.option[2:]}" if one.flag else one.option
    info = typer.Option(
        declared,
        help=one.help.replace("[", r"\["),
        metavar=one.metavar,
        show_default=False,
        rich_help_panel=PANEL,
    )
    kind: Any = bool | None if one.flag else list[str] | None if one.many else str | None
    return inspect.Parameter(
        one.parameter,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind, info],
    )
