"""The routes of the server."""

import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib import resources
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from slmc import __version__
from slmc.errors import SlmcError
from slmc.server import protocol_v2
from slmc.server.answering import Answered, answers, key_of
from slmc.server.engines import Engines
from slmc.server.gate import ENGINE, RECEIVED
from slmc.server.metrics import CONTENT_TYPE
from slmc.server.requests import (
    Answer,
    Ask,
    EngineList,
    Health,
    Items,
    Problem,
    Reloaded,
    RequestError,
    described,
    parse,
    problem,
)

PAGE = {"index.html": "text/html", "page.js": "text/javascript", "page.css": "text/css"}
"""File of the page -> its type."""
SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cache-Control": "no-cache",
}
"""Headers of the page; its own policy is in the HTML."""
LIMIT = 100
"""Largest number of items that a search returns."""
PROBLEMS: dict[int | str, dict[str, Any]] = {"4XX": {"model": Problem}, "5XX": {"model": Problem}}
NO_TELEMETRY = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}


def make_app(engines: Engines) -> FastAPI:
    """The application; its lifespan starts and ends the engines' worker threads."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engines.start()
        yield
        await engines.close()

    app = FastAPI(
        title="slmc serve", version=__version__, lifespan=lifespan, responses=PROBLEMS,
        description="Recommendations of engines: original ids in; ids, titles and scores out.",
        redoc_url=None, redirect_slashes=False, telemetry=NO_TELEMETRY,  # type: ignore[arg-type]
    )  # fmt: skip
    _add_errors(app)
    _add_page(app)
    _add_routes(app, engines)
    protocol_v2.add_routes(app, engines)
    return app


def _add_routes(app: FastAPI, engines: Engines) -> None:
    @app.post("/recommend", response_model=Answer, openapi_extra=described(Ask))
    async def recommend(request: Request) -> Response:
        """The best items for a history."""
        ask = parse(Ask, await request.body())
        slot = engines.slot(ask.engine)
        request.scope[ENGINE] = slot.name
        slot.opened.number(ask.k)
        seconds = engines.settings.deadline_ms / 1000
        answered: Answered = await slot.batcher.answer(answers, key_of(ask), ask, 1, seconds)
        latency_ms = round(1000 * (time.perf_counter() - request.scope[RECEIVED]), 3)
        return as_json(
            {
                "engine": slot.name, "items": answered.items, "unknown": answered.unknown,
                "by": answered.by, "latency_ms": latency_ms,
            }
        )  # fmt: skip

    @app.get("/engines", response_model=EngineList)
    async def list_engines() -> Response:
        """The engines that are served; the first one is the default."""
        return as_json({"engines": [slot.info().model_dump() for slot in engines.slots.values()]})

    @app.get("/items", response_model=Items)
    async def items(
        request: Request,
        engine: str | None = None,
        q: str = "",
        limit: Annotated[int, Query(ge=1, le=LIMIT)] = 20,
    ) -> Response:
        """Items whose title or id has all words of ``q``; without words the most popular ones."""
        request.scope[ENGINE] = engines.slot(engine).name
        return as_json({"items": await engines.find(engine, q, limit)})

    @app.post("/engines/{name}/reload", response_model=Reloaded)
    async def reload(request: Request, name: str) -> Response:
        """Serve what the path of the engine leads to now."""
        slot = engines.slot(name)
        request.scope[ENGINE] = slot.name
        try:
            changed = await slot.reload()
        except SlmcError as error:
            message = f"{name} was not reloaded, the old engine is served on: {error.what}"
            raise RequestError(409, message) from None
        digest = slot.opened.artefact.digest
        return as_json({"engine": name, "digest": digest, "changed": changed})

    @app.get("/health", response_model=Health)
    async def health() -> Response:
        """Whether requests are accepted."""
        if engines.stopping:
            raise RequestError(503, "the server is stopping")
        return as_json({"status": "ok", "engines": list(engines.slots)})

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(engines.metrics.text(), headers={"Content-Type": CONTENT_TYPE})


def _add_page(app: FastAPI) -> None:
    folder = resources.files("slmc.server") / "page"
    contents = {name: (folder / name).read_bytes() for name in PAGE if (folder / name).is_file()}

    def add(path: str, name: str) -> None:
        @app.get(path, include_in_schema=False)
        async def page() -> Response:
            content_type = {"Content-Type": f"{PAGE[name]}; charset=utf-8"}
            return Response(contents[name], headers={**SECURITY, **content_type})

    for name in contents:
        add("/" if name == "index.html" else f"/{name}", name)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> Response:
        return as_json({"error": error.message}, error.status, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return as_json({"error": problem(error.errors())}, 400)

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        path = request.url.path
        message = {
            404: f"{path} does not exist; /docs lists what does",
            405: f"{path} does not answer {request.method}",
        }.get(error.status_code, str(error.detail))
        return as_json({"error": message}, error.status_code, error.headers)


def as_json(
    content: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A response of JSON."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    body = text.encode("utf-8", "replace")
    return Response(body, status, dict(headers or {}), media_type="application/json")
