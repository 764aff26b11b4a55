"""The live page: FastAPI, read-only. What changed is pushed as server-sent events."""

import asyncio
import hmac
import ipaddress
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from html import escape
from typing import TYPE_CHECKING, Any

from model_opt.errors import InvalidInput, MissingDependency
from model_opt.report.charts import charts
from model_opt.report.page import asset, body, head, plotly_js
from model_opt.report.watching import Seen, Watching

if TYPE_CHECKING:
    from fastapi import FastAPI

POLL_S = 0.5
QUIET_S = 15.0
"""A comment is sent after so long without news, so that a connection that is gone is noticed."""
COOKIE = "model_opt_token"
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
POLICY = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; frame-ancestors 'none'"


def make_app(watching: Watching, *, token: str | None, hosts: frozenset[str] | None = LOOPBACK) -> "FastAPI":
    """The page's application. With a `token` every request needs it (`?token=`, a cookie, or a bearer header); only
    requests to one of `hosts` are answered (None: any), so that a page elsewhere cannot lend this machine its name.
    Raises `MissingDependency` without fastapi."""
    try:
        from fastapi import FastAPI
    except ImportError as error:
        raise MissingDependency("fastapi", "ui") from error
    app = FastAPI(title="model_opt", docs_url=None, redoc_url=None, openapi_url=None)
    app.middleware("http")(_guard(token, hosts))
    _add_assets(app)
    _add_data(app, watching)
    return app


def _guard(
    token: str | None, hosts: frozenset[str] | None
) -> Callable[[Any, Callable[[Any], Awaitable[Any]]], Awaitable[Any]]:
    from starlette.responses import PlainTextResponse, RedirectResponse

    async def guard(request: Any, call_next: Callable[[Any], Awaitable[Any]]) -> Any:
        if hosts is not None and request.url.hostname not in hosts:
            return PlainTextResponse("model-opt ui answers on this machine only", 400)
        if token is not None:
            given = request.query_params.get("token")
            if given is not None and _same(given, token) and request.method == "GET":
                response: Any = RedirectResponse(request.url.path, status_code=303)  # the address keeps no token
                response.set_cookie(COOKIE, token, httponly=True, samesite="strict")
                return response
            bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
            if not (_same(request.cookies.get(COOKIE, ""), token) or _same(bearer, token)):
                return PlainTextResponse("model-opt ui was started with a token: open the address it printed", 401)
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    return guard


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(), token.encode())


def _add_assets(app: "FastAPI") -> None:
    from fastapi.responses import HTMLResponse, Response

    @app.get("/")
    def page() -> HTMLResponse:
        return HTMLResponse(asset("live.html"))

    @app.get("/assets/{name}")
    def file(name: str) -> Response:
        kinds = {"css": "text/css", "js": "text/javascript"}
        known = {"page.css", "draw.js", "live.js"}
        if name == "plotly.js":
            return Response(plotly_js(), media_type=kinds["js"], headers={"Cache-Control": "max-age=86400"})
        if name not in known:
            return Response(status_code=404)
        return Response(asset(name), media_type=kinds[name.rpartition(".")[2]], headers={"Cache-Control": "no-cache"})


def _add_data(app: "FastAPI", watching: Watching) -> None:
    from fastapi.responses import JSONResponse, StreamingResponse

    @app.get("/api/runs")
    def runs() -> JSONResponse:
        return JSONResponse([summary(seen) for seen in watching.runs()])

    @app.get("/api/runs/{key}")
    def run(key: str) -> JSONResponse:
        seen = watching.run(key)
        if seen is None:
            return JSONResponse({"error": "this search is no longer there"}, 404)
        return JSONResponse(details(seen))

    @app.get("/api/knowledge")
    def knowledge() -> JSONResponse:
        return JSONResponse(dict(watching.knowledge()))

    @app.get("/events")
    async def events() -> StreamingResponse:
        return StreamingResponse(
            _events(watching), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
        )


async def _events(watching: Watching) -> AsyncIterator[str]:
    """The list of searches, at once and whenever it has changed."""
    before, quiet = "", 0.0
    while True:
        text = json.dumps([summary(seen) for seen in await asyncio.to_thread(watching.runs)])
        if text != before:
            before, quiet = text, 0.0
            yield f"event: runs\ndata: {text}\n\n"
        elif quiet >= QUIET_S:
            quiet = 0.0
            yield ": still here\n\n"
        await asyncio.sleep(POLL_S)
        quiet += POLL_S


def summary(seen: Seen) -> dict[str, Any]:
    """A search in the list, JSON-like."""
    view = seen.view
    if view is None:
        return {
            "key": seen.key,
            "version": seen.version,
            "name": "cannot be read",
            "state": "error",
            "error": seen.error,
        }
    return {
        "key": seen.key,
        "version": seen.version,
        "name": view.name,
        "state": view.state,
        "running": view.running,
        "where": view.where,
        "settled": view.settled,
        "budget": view.budget,
        "phase": view.phase if view.running else "",
        "count": view.count(),
        "best": view.headline() or None,
    }


def details(seen: Seen) -> dict[str, Any]:
    """A search to look at: `html` of the page and `figures` by the id of their place in it."""
    if seen.view is None:
        return {
            "key": seen.key,
            "version": seen.version,
            "html": f"<p class='missing'>{escape(seen.error)}</p>",
            "figures": {},
        }
    shown = charts(seen.view)
    return {
        "key": seen.key,
        "version": seen.version,
        "html": f"<div class='head'>{head(seen.view)}</div>{body(seen.view, shown)}",
        "figures": {chart.key: chart.figure for chart in shown if chart.figure is not None},
    }


def serve_live(watching: Watching, *, host: str, port: int, token: str | None, on_ready: Callable[[str], None]) -> None:
    """Serves until it is interrupted; `on_ready` is told the address once it can be opened.

    Raises `InvalidInput` for a host beyond this machine without a token, or a port that is taken.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise MissingDependency("uvicorn", "ui") from error
    plotly_js()  # missing? say so before anything is opened
    if token is None and not is_loopback(host):
        raise InvalidInput(f"{host} can be reached from elsewhere: a token is needed")
    app = make_app(watching, token=token, hosts=LOOPBACK if is_loopback(host) else None)
    config = uvicorn.Config(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=1, workers=1)
    sock = _bound(config)
    query = "" if token is None else f"/?token={token}"
    shown = f"[{host}]" if ":" in host else host
    on_ready(f"http://{shown}:{sock.getsockname()[1]}{query}")
    uvicorn.Server(config).run(sockets=[sock])


def _bound(config: Any) -> Any:
    import socket

    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((config.host, config.port))
        sock.listen(128)
    except OSError as error:
        sock.close()
        message = f"{config.host}:{config.port} cannot be used: {error.strerror or error}; try another --port, or 0"
        raise InvalidInput(message) from error
    return sock


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`. Raises `InvalidInput` for what is no address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError as error:
        raise InvalidInput(f"{host!r} is no IP address to listen on: 127.0.0.1, or 0.0.0.0 for everybody") from error
