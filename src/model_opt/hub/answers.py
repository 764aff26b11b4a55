"""What a hub answers, each described once: the service makes it, the client reads it, OpenAPI is derived from it.

All but a page are JSON objects with the names of the fields.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar, get_args, get_origin, get_type_hints

from model_opt.errors import WireError
from model_opt.hub import record_frames

A = TypeVar("A")
CURSOR_HEADER, MORE_HEADER = "Hub-Cursor", "Hub-More"


@dataclass(frozen=True, kw_only=True)
class HealthAnswer:
    """That the hub and its store work."""

    status: str
    hub: str
    federations: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class NonceAnswer:
    """A nonce, 64 hexadecimal digits, and the version of the protocol."""

    nonce: str
    protocol: int


@dataclass(frozen=True, kw_only=True)
class StatusAnswer:
    """What a hub has: streams by "origin/epoch", each with its last contiguous sequence and that one's digest.

    `laws` are the digests of revocations. `hub` changes when the hub's store does: cursors of another mean nothing.
    """

    hub: str
    cursor: int
    records: int
    streams: Mapping[str, tuple[int, str]]
    laws: tuple[str, ...]
    max_body_bytes: int
    max_record_bytes: int

    def reached(self) -> dict[tuple[str, str], int]:
        """The last contiguous sequence of each (origin, epoch)."""
        return {_named_stream(name): sequence for name, (sequence, _) in self.streams.items()}


@dataclass(frozen=True, kw_only=True)
class PushAnswer:
    """What became of a push: counts, those of what was refused by reason.

    `missing` are streams by "origin/epoch", each with the sequence after which the hub lacks something.
    """

    hub: str
    cursor: int
    new: int
    known: int
    refused: Mapping[str, int]
    missing: Mapping[str, int]
    quarantined: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RefusalAnswer:
    """Why a request is refused: a code for programs, and a sentence for people."""

    error: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Page:
    """Records as (cursor, bytes), where to go on, and whether others follow. The body is binary, the rest are headers.

    Cursors are a hub's own, or sequences where one stream was asked for.
    """

    records: tuple[tuple[int, bytes], ...]
    cursor: int
    more: bool

    @property
    def body(self) -> bytes:
        """The records with their cursors; see `record_frames`."""
        return record_frames.pack_page(self.records)

    @property
    def headers(self) -> dict[str, str]:
        """What the body does not say."""
        return {CURSOR_HEADER: str(self.cursor), MORE_HEADER: "1" if self.more else "0"}

    @classmethod
    def read(cls, headers: Mapping[str, str], body: bytes, most: int) -> Self:
        """The page in an answer, with records of at most `most` bytes; raises `WireError` where it is none."""
        try:
            cursor, more = int(headers[CURSOR_HEADER]), headers[MORE_HEADER] == "1"
        except (KeyError, ValueError) as error:
            raise WireError(f"no page: {type(error).__name__}: {error}") from error
        return cls(records=tuple(record_frames.unpack_page(body, most)), cursor=cursor, more=more)


def stream_name(origin: str, epoch: str) -> str:
    """How answers name a stream."""
    return f"{origin}/{epoch}"


def _named_stream(name: str) -> tuple[str, str]:
    origin, _, epoch = name.rpartition("/")
    return origin, epoch


def read(kind: type[A], body: bytes) -> A:
    """The answer of this `kind` in `body`; raises `WireError` where it is none.

    Names that `kind` does not have are passed over: a later hub may say more.
    """
    try:
        said = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise WireError(f"no JSON: {error}") from error
    if not isinstance(said, dict):
        raise WireError("no JSON object")
    return kind(**{name: _value(name, said.get(name), wanted) for name, wanted in get_type_hints(kind).items()})


def _value(name: str, found: object, wanted: Any) -> Any:
    """`found` as the type `wanted`: a text, an integer, a map from texts, or a tuple, of one type or of fixed ones."""
    container, inner = get_origin(wanted), get_args(wanted)
    if container is Mapping and isinstance(found, dict):
        return {key: _value(name, value, inner[1]) for key, value in found.items()}
    if container is tuple and isinstance(found, list):
        each = inner[:1] * len(found) if inner[-1] is ... else inner
        if len(each) == len(found):
            return tuple(_value(name, value, one) for value, one in zip(found, each, strict=True))
    if type(found) is wanted:
        return found
    raise WireError(f"{name!r} is missing, or is no {wanted if container else wanted.__name__}")
