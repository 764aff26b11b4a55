"""What the OpenAPI document says of each request, beside what FastAPI finds out by itself: the answers' schemas."""

from typing import TYPE_CHECKING, Any

from model_opt.hub.answers import CURSOR_HEADER, MORE_HEADER, RefusalAnswer

if TYPE_CHECKING:
    from fastapi import FastAPI

ABOUT = """Deployments of model_opt exchange signed records here, by federation.

Every request under `/v1/{federation}` is signed:
`Authorization: ModelOpt origin=…, audience=…, nonce=…, body=…, mark=…`.
The nonce is that of `GET /v1/nonce` or of the last answer's `Replay-Nonce`, and is good once. `mark` is, in
hexadecimal, one byte 1, the signing key (32 bytes), its epoch (16), the root's signature over both (64), and the key's
ed25519 signature (64) over "model_opt request 1", method, target with query, audience, nonce and the body's
blake2b-256, each on a line.
"""


_NUMBER: dict[str, Any] = {"type": "integer"}
_BYTES: dict[str, Any] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


def _refusals(abouts: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": RefusalAnswer, "description": about} for status, about in abouts.items()}


_NO = _refusals(
    {
        401: "not signed, forged, signed for another address, or with a nonce that is not fresh",
        403: "not on the allow-list, in quarantine, or the key was withdrawn",
        404: "no such federation",
        429: "too often: see Retry-After",
        503: "the store cannot be used now: nothing was acknowledged",
    }
)
_NO_BODY = _refusals(
    {
        408: "the body did not arrive in time",
        413: "the body is larger than the limit; it was not read",
        422: "the body is cut short or malformed",
    }
)
_SIGNED: dict[str, Any] = {"security": [{"ModelOpt": []}]}
_PAGE = {
    "description": "records, each after its cursor (8 bytes, little endian) and its length (4)",
    "content": _BYTES,
    "headers": {
        CURSOR_HEADER: {"description": "where to go on", "schema": _NUMBER},
        MORE_HEADER: {"description": "1 where more follows", "schema": _NUMBER},
    },
}

HEALTH: dict[str, Any] = {
    "summary": "Whether the hub and its store work",
    "responses": {200: {"description": "they do"}, 503: _NO[503]},
}
METRICS: dict[str, Any] = {
    "summary": "Counters, as Prometheus reads them",
    "responses": {200: {"description": "text format 0.0.4", "content": {"text/plain": {"schema": {"type": "string"}}}}},
}
NONCE: dict[str, Any] = {
    "summary": "A nonce for one signed request",
    "responses": {200: {"description": "64 hexadecimal digits"}, 429: _NO[429]},
}
STATUS: dict[str, Any] = {
    "summary": "How far every stream is known without a gap, and the limits",
    "openapi_extra": _SIGNED,
    "responses": _NO | {200: {"description": "streams by origin/epoch: [last contiguous sequence, its digest]"}},
}
PUSH: dict[str, Any] = {
    "summary": "Adds records; what is there already changes nothing",
    "openapi_extra": _SIGNED | {"requestBody": {"required": True, "content": _BYTES}},
    "responses": _NO
    | _NO_BODY
    | {
        200: {"description": "what was new has been written; what was refused says why; what is missing should be sent"}
    },
}
PULL: dict[str, Any] = {
    "summary": "Records after a cursor of this hub",
    "openapi_extra": _SIGNED,
    "responses": _NO | {200: _PAGE},
}
REVOCATIONS: dict[str, Any] = {
    "summary": "The revocations after a cursor of this hub, for whoever has noticed that one is missing",
    "openapi_extra": _SIGNED,
    "responses": _NO | {200: _PAGE},
}
STREAM: dict[str, Any] = {
    "summary": "The envelopes of one stream after a sequence, for whoever has noticed a gap; cursors are sequences",
    "openapi_extra": _SIGNED,
    "responses": _NO | {200: _PAGE},
}


def describe_openapi(app: "FastAPI") -> None:
    """Adds to the document how requests are signed."""
    document = app.openapi()
    scheme = {"type": "apiKey", "in": "header", "name": "Authorization", "description": "see the introduction"}
    document.setdefault("components", {})["securitySchemes"] = {"ModelOpt": scheme}
    app.openapi_schema = document
