"""Options of the command line from the configs: one option per field, with the same name.

``--layers 4``, ``--losses.norm 0.1``: values are read as in a recipe, lists are repeated or
comma-separated, booleans are flags. Error messages name the option.
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
"""Type of a setting -> its placeholder in the help."""


@dataclass(frozen=True)
class Setting:
    """A field of a config as an option."""

    path: tuple[str, ...]
    help: str
    metavar: str | None
    flag: bool
    many: bool
    text: bool
    """Whether the value is always text, even if it looks like a number."""
    mapping: bool = False
    """Whether the value may also be a whole mapping."""

    @property
    def option(self) -> str:
        """``--losses.norm``."""
        return "--" + ".".join(self.path).replace("_", "-")

    @property
    def parameter(self) -> str:
        """Name of the Python parameter."""
        return "set__" + "__".join(self.path)


def settings(config: type[BaseModel], skip: tuple[str, ...] = ()) -> list[Setting]:
    """The options of a config, nested fields with dots.

    Args:
        config: The config.
        skip: Top-level fields that are not options.
    """
    by_path: dict[tuple[str, ...], Setting] = {}
    _collect(config, (), None, by_path)
    return [one for path, one in by_path.items() if path[0] not in skip]


def _collect(
    config: type[BaseModel],
    at: tuple[str, ...],
    default: BaseModel | None,
    by_path: dict[tuple[str, ...], Setting],
) -> None:
    for name, field in config.model_fields.items():
        path = (*at, name)
        value = getattr(default, name, None) if default is not None else field.get_default()
        arms = members(field.annotation)
        if plain := [a for a in arms if not _is_model(a)]:
            # `null` removes a nested config that may be absent.
            text = " ".join((field.description or "").split())
            setting = _setting(path, text, plain, value, nested=len(plain) < len(arms))
            before = by_path.get(path)
            if before is not None and setting.metavar not in (before.metavar or "").split("|"):
                # Two alternatives of a nested config have this field, such as split.by.
                setting = replace(before, metavar=f"{before.metavar}|{setting.metavar}")
            by_path[path] = setting
        for inner in models_at(config, (name,)):
            _collect(inner, path, value if isinstance(value, inner) else None, by_path)


def _setting(
    path: tuple[str, ...], description: str, arms: list[Any], default: Any, *, nested: bool
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
    return Setting(path, description + tail * (shown != ""), metavar, flag, many, text, nested)


def _plain(value: Any) -> str:
    """A value as a user types it."""
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
    config: type[Model], option_values: Mapping[tuple[str, ...], Any], command: str, **known: Any
) -> Model:
    """The config with the values of the command line.

    Args:
        config: The config class.
        option_values: Path of a field -> value of its option; None or [] if it is not used.
        command: The command, for the message.
        known: Fields that are not options.

    Raises:
        UsageError: Values are not valid; the error lists every such option.
    """
    raw: dict[str, Any] = dict(known)
    for one in settings(config):
        value = option_values.get(one.path)
        if value is not None and value != []:
            _put(config, raw, one.path, _value(one, value))
    valid, wrong = reasons(config, raw)
    if valid is None:
        faults = [f"{_option(reason.path)}{_message(reason.what)}" for reason in wrong]
        raise UsageError("; ".join(faults), f"See `{command} --help`.")
    return valid


def _value(one: Setting, value: Any) -> Any:
    """The value of an option, parsed from its text."""
    if one.flag:
        return value
    if one.mapping and value.startswith("{"):
        faults = Faults()
        mapping = parse(value, one.option, {}, faults).value
        return value if faults else mapping
    if one.many:
        words = [word.strip() for text in value for word in text.strip("[]").split(",")]
        if words == ["null"]:
            return None
        return [word if one.text else scalar(word) for word in words if word]
    return value if one.text and value != "null" else scalar(value)


def _put(config: type[BaseModel], raw: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Set a nested field; the other nested fields keep their defaults, as with ``--set``."""
    model: type[BaseModel] | None = config
    for name in path[:-1]:
        inner = raw.get(name)
        if not isinstance(inner, dict):
            field = model.model_fields.get(name) if model is not None else None
            default = field.get_default() if field is not None else None
            inner = default.model_dump(exclude_none=True) if isinstance(default, BaseModel) else {}
            raw[name] = inner
        inside = models_at(model, (name,)) if model is not None else []
        model, raw = (inside[0] if inside else None), inner
    raw[path[-1]] = value


def _message(what: str) -> str:
    # Every option is a field, so an unknown field belongs to another alternative of its config.
    unknown = what.startswith("there is no key")
    return "cannot be used with the other settings of this kind" if unknown else what


def _option(path: tuple[str | int, ...]) -> str:
    names = [str(part) for part in path if not isinstance(part, int)]
    return f"--{'.'.join(names).replace('_', '-')}: " if names else ""


def configured(
    config: type[BaseModel], command: str, skip: tuple[str, ...] = ()
) -> Callable[[Function], Function]:
    """Give a command the options of a config; its function gets the config as ``config``.

    With ``skip`` the function gets ``make`` instead: a function that takes the skipped fields and
    returns the config.
    """
    options = settings(config, skip)

    def decorate(function: Function) -> Function:
        parameters = [
            parameter
            for name, parameter in inspect.signature(function).parameters.items()
            if name not in ("config", "make")
        ]

        def call(**values: Any) -> int | None:
            option_values = {one.path: values.pop(one.parameter) for one in options}
            if skip:
                return function(
                    make=lambda **known: build(config, option_values, command, **known), **values
                )
            return function(config=build(config, option_values, command), **values)

        return signed(call, [*parameters, *map(_parameter, options)], function)

    return decorate


def signed(call: Function, parameters: list[inspect.Parameter], model: Function) -> Function:
    """Give ``call`` a signature for Typer, and the name and help of ``model``."""
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
