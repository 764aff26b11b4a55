"""The hub's HTTP service: what is asked under which URL, over FastAPI. What may be asked is decided by `authorizer`."""

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING, TypeVar

from model_opt.errors import MissingDependency, StoreError, WireError
from model_opt.hub import openapi, record_frames
from model_opt.hub.answers import (
    HealthAnswer,
    NonceAnswer,
    Page,
    PushAnswer,
    RefusalAnswer,
    StatusAnswer,
    stream_name,
)
from model_opt.hub.authorizer import Authorizer, HubRequest, Refusal
from model_opt.hub.credentials import NONCE_HEADER, Credentials, body_hash
from model_opt.hub.hosted_federation import HostedFederation, Pushed

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

    Spool = tempfile.SpooledTemporaryFile[bytes]

T = TypeVar("T")
PROTOCOL = 1
_BINARY = "application/octet-stream"
_MOST_REASONS = 20
_SPOOLED_BYTES = 2**18


def build_app(authorizer: Authorizer, hub_id: str) -> "FastAPI":
    """The application over `authorizer`; `hub_id` changes when the hub's store does. Raises `MissingDependency`."""
    try:
        from fastapi import FastAPI, Request
        from fastapi.responses import JSONResponse
        from starlette.responses import Response
    except ImportError as error:
        raise MissingDependency("fastapi", "hub") from error

    service = _Service(authorizer, hub_id)
    app = FastAPI(title="model_opt hub", version=str(PROTOCOL), description=openapi.ABOUT)

    @app.middleware("http")
    async def answer(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        return await service.answer(request, call_next)

    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> Response:
        headers = {"Retry-After": str(int(refusal.wait_s) + 1)} if refusal.wait_s else {}
        answer = RefusalAnswer(error=refusal.code, message=refusal.message)
        return JSONResponse(asdict(answer), refusal.status, headers)

    _open_routes(app, service)
    _signed_routes(app, service)
    openapi.describe_openapi(app)
    return app


def _open_routes(app: "FastAPI", service: "_Service") -> None:
    from fastapi import Request
    from starlette.responses import Response

    @app.get("/health", **openapi.HEALTH)
    async def health() -> HealthAnswer:
        return await service.health()

    @app.get("/metrics", **openapi.METRICS)
    async def metrics() -> Response:
        return Response(service.authorizer.counts.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/nonce", **openapi.NONCE)
    async def nonce(request: Request) -> NonceAnswer:
        return await service.nonce(request)


def _signed_routes(app: "FastAPI", service: "_Service") -> None:
    from fastapi import Request
    from starlette.responses import Response

    @app.get("/v1/{federation}/status", **openapi.STATUS)
    async def status(federation: str, request: Request) -> StatusAnswer:
        return await service.status(federation, request)

    @app.post("/v1/{federation}/records", **openapi.PUSH)
    async def push(federation: str, request: Request) -> PushAnswer:
        return await service.push(federation, request)

    @app.get("/v1/{federation}/records", **openapi.PULL)
    async def pull(federation: str, request: Request, after: int = 0) -> Response:
        return _paged(Response, await service.page("pull", federation, request, after, HostedFederation.pull))

    @app.get("/v1/{federation}/revocations", **openapi.REVOCATIONS)
    async def revocations(federation: str, request: Request, after: int = 0) -> Response:
        taken = await service.page("revocations", federation, request, after, HostedFederation.revocations)
        return _paged(Response, taken)

    @app.get("/v1/{federation}/streams/{origin}/{epoch}", **openapi.STREAM)
    async def stream(federation: str, origin: str, epoch: str, request: Request, after: int = 0) -> Response:
        def of_stream(hosted: HostedFederation, after: int, most_bytes: int) -> Page:
            return hosted.stream(origin, epoch, after, most_bytes)

        return _paged(Response, await service.page("stream", federation, request, after, of_stream))


def ask_of(request: "Request") -> HubRequest:
    """What `authorizer` wants to know of a request."""
    query = request.scope.get("query_string", b"").decode("latin-1")
    path = request.scope.get("raw_path", b"").decode("latin-1").partition("?")[0]
    length = request.headers.get("content-length", "")
    return HubRequest(
        method=request.method,
        target=f"{path}?{query}" if query else path,
        address=request.client.host if request.client else "",
        header=request.headers.get("authorization"),
        length=int(length) if length.isdecimal() and len(length) < 20 else None,
    )


def _paged(response: "type[Response]", page: Page) -> "Response":
    return response(page.body, media_type=_BINARY, headers=page.headers)


class _Service:
    def __init__(self, authorizer: Authorizer, hub_id: str) -> None:
        self.authorizer, self.hub_id = authorizer, hub_id
        self._bodies = asyncio.Semaphore(authorizer.limits.bodies)
        self._arriving: Counter[str] = Counter()
        """Bodies that arrive now, by origin."""
        self._gate = ThreadPoolExecutor(1, "model-opt-gate")
        """The one thread that works with `authorizer` and the audit log: they read files and check signatures, which
        the event loop does not wait for."""

    async def answer(self, request: "Request", call_next: "Callable[[Request], Awaitable[Response]]") -> "Response":
        """Counts the request, and hands out the nonce for the next one."""
        began = time.perf_counter()
        response = await call_next(request)
        if request.scope["path"].startswith("/v1/") and response.status_code != 429:
            response.headers[NONCE_HEADER] = await self._at_gate(self.authorizer.nonces.issue)
        route = request.scope.get("route")
        what = getattr(route, "name", "unknown")
        self.authorizer.counts.answered(what, response.status_code, time.perf_counter() - began)
        return response

    async def health(self) -> HealthAnswer:
        try:
            for hosted in self.authorizer.federations.values():
                await asyncio.to_thread(hosted.check)
        except StoreError as error:
            raise Refusal(503, "store", f"the store cannot be read: {type(error).__name__}") from error
        return HealthAnswer(status="ok", hub=self.hub_id, federations=tuple(sorted(self.authorizer.federations)))

    async def nonce(self, request: "Request") -> NonceAnswer:
        ask = ask_of(request)
        await self._at_gate(lambda: self.authorizer.stranger(ask))
        return NonceAnswer(nonce=await self._at_gate(self.authorizer.nonces.issue), protocol=PROTOCOL)

    async def status(self, federation: str, request: "Request") -> StatusAnswer:
        hosted, said = await self._admitted(request, federation)
        reached = await self._at_store(hosted.reached)
        await self._at_gate(lambda: self._log("status", federation, said))
        limits = self.authorizer.limits
        streams = {stream_name(origin, epoch): (at.sequence, at.digest) for (_, origin, epoch), at in reached.items()}
        return StatusAnswer(
            hub=self.hub_id,
            cursor=hosted.cursor,
            records=hosted.records,
            streams=streams,
            laws=tuple(hosted.laws()),
            max_body_bytes=limits.max_body_bytes,
            max_record_bytes=limits.max_record_bytes,
        )

    async def push(self, federation: str, request: "Request") -> PushAnswer:
        hosted, said = await self._admitted(request, federation)
        try:
            with tempfile.SpooledTemporaryFile(_SPOOLED_BYTES) as arrived:
                await self._arrival(request, said, arrived)
                async with self._bodies:
                    body = self._checked(arrived, said)
                    records = list(record_frames.unpack(body, self.authorizer.limits.max_record_bytes))
                    pushed = await self._at_store(lambda: hosted.push(records))
        except WireError as error:
            refusal = Refusal(422, "malformed", str(error))
            await self._refused(request, federation, refusal)
            raise refusal from error
        except Refusal as refusal:
            await self._refused(request, federation, refusal)
            raise
        return await self._at_gate(lambda: self._told(federation, said, hosted, pushed, len(body)))

    async def page(
        self,
        event: str,
        federation: str,
        request: "Request",
        after: int,
        records: Callable[[HostedFederation, int, int], Page],
    ) -> Page:
        """Those `records` after a cursor, as many as fit a body; logged as `event`."""
        hosted, said = await self._admitted(request, federation)
        most = self.authorizer.limits.max_body_bytes
        page = await self._at_store(lambda: records(hosted, min(max(after, 0), 2**62), most))
        return await self._at_gate(lambda: self._handed_out(event, federation, said, page))

    async def _at_gate(self, action: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._gate, action)

    async def _admitted(self, request: "Request", federation: str) -> tuple[HostedFederation, Credentials]:
        ask = ask_of(request)
        return await self._at_gate(lambda: self.authorizer.admit(ask, federation))

    async def _refused(self, request: "Request", federation: str, refusal: Refusal) -> None:
        ask = ask_of(request)
        await self._at_gate(lambda: self.authorizer.refuse(ask, federation, refusal))

    async def _arrival(self, request: "Request", said: Credentials, into: "Spool") -> None:
        """Takes the body in, large ones on disk: however slowly it comes, nobody waits for it."""
        from starlette.requests import ClientDisconnect

        size, most = 0, self.authorizer.limits.max_body_bytes
        if self._arriving[said.origin] >= self.authorizer.limits.bodies_of_origin:
            raise Refusal(429, "too_many_bodies", "too many bodies of this origin arrive at once", 1.0)
        self._arriving[said.origin] += 1
        try:
            async with asyncio.timeout(self.authorizer.limits.body_s):
                async for part in request.stream():
                    size += len(part)
                    if size > most:
                        raise self.authorizer.too_large(f"more than {most} bytes")
                    into.write(part)
        except TimeoutError as error:
            raise Refusal(408, "too_slow", "the body did not arrive in time") from error
        except ClientDisconnect as error:
            raise Refusal(400, "cut_short", "the connection was closed within the body") from error
        except OSError as error:
            raise Refusal(503, "no_room", "the hub has no room for the body now: try again", 1.0) from error
        finally:
            self._arriving -= Counter([said.origin])

    def _checked(self, arrived: "Spool", said: Credentials) -> bytes:
        """The body, if it is what was signed."""
        arrived.seek(0)
        body = arrived.read()
        if body_hash(body) != said.body:
            raise Refusal(401, "forged", "the body is not the one that was signed, or was cut short")
        return body

    async def _at_store(self, action: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(action)
        except StoreError as error:
            message = f"the hub's store failed ({type(error).__name__}): nothing of this was acknowledged, try again"
            raise Refusal(503, "store", message, wait_s=1.0) from error

    def _told(
        self, federation: str, said: Credentials, hosted: HostedFederation, pushed: Pushed, size_bytes: int
    ) -> PushAnswer:
        decisions = Counter(str(verdict.decision) for verdict in pushed.verdicts)
        reasons = Counter(verdict.reason for verdict in pushed.verdicts if verdict.reason)
        self.authorizer.counts.pushed(federation, decisions, hosted.records, len(pushed.quarantined))
        self.authorizer.counts.moved("in", size_bytes)
        self._log("push", federation, said, size_bytes=size_bytes, cursor=pushed.cursor, decisions=dict(decisions))
        for verdict in pushed.verdicts:
            if verdict.reason:
                self._log("record refused", federation, said, record=verdict.identity, reason=verdict.reason)
        for origin in pushed.quarantined:
            self._log("quarantined", federation, said, quarantined=origin)
        return PushAnswer(
            hub=self.hub_id,
            cursor=pushed.cursor,
            new=decisions["new"],
            known=decisions["known"],
            refused=dict(reasons.most_common(_MOST_REASONS)),
            missing={stream_name(gap.origin, gap.epoch): gap.known for gap in pushed.missing},
            quarantined=pushed.quarantined,
        )

    def _handed_out(self, event: str, federation: str, said: Credentials, page: Page) -> Page:
        size_bytes = sum(len(data) for _, data in page.records)
        self.authorizer.counts.moved("out", size_bytes)
        self._log(event, federation, said, records=len(page.records), size_bytes=size_bytes, cursor=page.cursor)
        return page

    def _log(self, event: str, federation: str, said: Credentials, **fields: object) -> None:
        self.authorizer.audit.write(event, federation=federation, origin=said.origin, **fields)
