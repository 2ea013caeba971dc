"""What clients send and get, and what is wrong with it in one sentence."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError

Id = StrictStr | StrictInt
"""Original ids: text, or whole numbers."""
SHOWN = 40
"""Characters of a wrong value in a message."""


Body = TypeVar("Body", bound=BaseModel)


class RequestError(Exception):
    """A request that is not answered."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        """Store the HTTP status, the message and further headers of the response."""
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


class Strict(BaseModel):
    """A body: unknown fields and other types are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Ask(Strict):
    """The body of ``POST /recommend``."""

    engine: str | None = None
    """Name of an engine; by default the first one of the command line."""
    history: list[Id]
    """Original ids, oldest first; unknown ones are skipped. May be empty."""
    k: Annotated[int, Field(ge=1)] | None = None
    """Number of items, at most the engine's ``top_k``; by default 10, or all that it returns."""
    exclude_seen: bool = True
    """Leave out the items of the history, also those that are too old for the model to read."""
    allow: list[Id] | None = None
    """Return only items with these ids."""
    deny: list[Id] | None = None
    """Leave out items with these ids."""


class Item(BaseModel):
    """A recommended item."""

    item: str | int
    """Original id: a whole number if all ids of the history are, else text."""
    title: str | None
    score: float
    """Of the model; with ``by: popular`` the number of training interactions."""


class Answer(BaseModel):
    """The answer to ``POST /recommend``."""

    engine: str
    items: list[Item]
    unknown: list[str | int]
    """Ids of the history that the engine does not know."""
    by: Literal["model", "popular"]
    """``popular`` for a history without a known item."""
    latency_ms: float
    """Time in the server, from the arrival of the request on."""


class Found(BaseModel):
    """An item that a search found."""

    item: str
    title: str | None


class Items(BaseModel):
    """The answer to ``GET /items``."""

    items: list[Found]


class EngineInfo(BaseModel):
    """An engine that is served."""

    name: str
    precision: str
    items: int
    history: int
    """Number of newest items that the model reads."""
    top_k: int
    """Largest ``k``."""
    model: str
    """Digest of the model that the engine was made from."""
    digest: str
    """Digest of the engine."""
    size_mb: float
    loaded: str
    """When it was opened, UTC."""


class EngineList(BaseModel):
    """The answer to ``GET /engines``."""

    engines: list[EngineInfo]


class Reloaded(BaseModel):
    """The answer to ``POST /engines/{name}/reload``."""

    engine: str
    digest: str
    changed: bool
    """False if the path still leads to the engine that was served."""


class Health(BaseModel):
    """The answer to ``GET /health``."""

    status: Literal["ok"]
    engines: list[str]


class Problem(BaseModel):
    """Every answer that is not 2xx."""

    error: str


def parse(kind: type[Body], body: bytes) -> Body:
    """Read a body of JSON; raises :class:`RequestError` (400) that names the wrong field."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise RequestError(400, problem(error.errors(include_url=False), kind)) from None


def described(kind: type[Any]) -> dict[str, Any]:
    """OpenAPI of a body, which the route reads itself: FastAPI would parse it twice as slowly."""
    schema = kind.model_json_schema()
    schema = _inlined(schema, schema.pop("$defs", {}))
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _inlined(node: Any, definitions: Mapping[str, Any]) -> Any:
    """A schema with its definitions in their places: OpenAPI looks for them at its own root."""
    if isinstance(node, list):
        return [_inlined(one, definitions) for one in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _inlined(definitions[node["$ref"].rpartition("/")[2]], definitions)
    return {key: _inlined(value, definitions) for key, value in node.items()}


def problem(errors: Sequence[Mapping[str, Any]], kind: type[BaseModel] | None = None) -> str:
    """The first fault of a request, as a sentence that begins with the field."""
    first = errors[0]
    fault, given = first["type"], _shown(first.get("input"))
    if fault == "json_invalid":
        return f"the body is not JSON: {first['ctx']['error']}"
    path = [part for part in first["loc"] if part not in ("query", "path", "body")]
    if fault in ("string_type", "int_type") and path and path[-1] in ("str", "int"):
        return f"{_name(path[:-1])}: expected text or a whole number, not {given}"
    if not path:
        return 'the body is not a JSON object such as {"history": ["50"]}'
    name = _name(path)
    if fault == "missing":
        more = "; an empty list is a user without a history" if name == "history" else ""
        return f"{name}: missing{more}"
    if fault == "extra_forbidden":
        known = "" if kind is None or len(path) > 1 else f"; known: {', '.join(kind.model_fields)}"
        return f"{name}: unknown field{known}"
    expected = {
        "list_type": "a list of ids" if name in ("history", "allow", "deny") else "a list",
        "dict_type": "an object",
        "model_type": "an object",
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "int_parsing": "a whole number",
        "bool_type": "true or false",
        "string_type": "text",
    }.get(fault)
    if expected is not None:
        return f"{name}: expected {expected}, not {given}"
    return f"{name}: {first['msg'][:1].lower()}{first['msg'][1:]}, not {given}"


def _name(path: Sequence[str | int]) -> str:
    """``history[1]`` from its parts."""
    name = ""
    for part in path:
        name += f"[{part}]" if isinstance(part, int) else f"{'.' if name else ''}{part}"
    return name


def _shown(value: object) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = "a value of another kind"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
