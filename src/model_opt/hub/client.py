"""Asks a hub: signs, tries again where that helps, and says plainly what is wrong."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote, urlparse

from model_opt.errors import HubError, HubRefused, HubUnreachable, InvalidInput, MissingDependency, WireError
from model_opt.federation.identity import Identity
from model_opt.hub import record_frames
from model_opt.hub.answers import Page, PushAnswer, RefusalAnswer, StatusAnswer, read
from model_opt.hub.credentials import NONCE_HEADER, written

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
_MOST_BYTES = 64 * 2**20
_BUSY = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True, kw_only=True)
class _Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def error(self) -> tuple[str, str]:
        """The hub's code and sentence; the beginning of the text where something else has answered."""
        try:
            said = read(RefusalAnswer, self.body)
        except WireError:
            return "", self.body[:200].decode(errors="replace")
        return said.error, said.message[:500]


class _Again(Exception):
    """A failure that may pass: the error to raise in the end, and how long the hub asks to wait."""

    def __init__(self, error: HubError, wait_s: float = 0.0) -> None:
        super().__init__(str(error))
        self.error, self.wait_s = error, wait_s


class HubClient:
    """One federation of the hub at `url`, asked by `identity`. Not for several threads."""

    def __init__(
        self,
        url: str,
        identity: Identity,
        *,
        federation: str = "local",
        authority: Path | None = None,
        timeout_s: float = 60.0,
        deadline_s: float = 60.0,
    ) -> None:
        """`authority` is a file of certificates to trust for TLS, beside the system's. `deadline_s` is how long a
        request is tried again. Raises `InvalidInput` and `MissingDependency`."""
        try:
            import httpx
        except ImportError as error:
            raise MissingDependency("httpx", "hub") from error
        parts = urlparse(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise InvalidInput(f"{url!r} is no hub's address: https://hub.example:8470")
        self._url = url.rstrip("/")
        self._identity, self._federation, self._deadline_s = identity, federation, deadline_s
        self._nonce = ""
        self._http = httpx.Client(timeout=timeout_s, verify=_trust(authority), follow_redirects=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets the connections go."""
        self._http.close()

    def status(self) -> StatusAnswer:
        """What the hub has."""
        reply = self._ask("GET", "status")
        return self._understood(lambda: read(StatusAnswer, reply.body))

    def push(self, records: list[bytes]) -> PushAnswer:
        """Sends records in one request; when it returns the hub has written those that it took."""
        reply = self._ask("POST", "records", body=record_frames.pack(records))
        return self._understood(lambda: read(PushAnswer, reply.body))

    def pull(self, after: int) -> Page:
        """The records after a cursor of this hub."""
        return self._page(self._ask("GET", f"records?after={after}"))

    def revocations(self, after: int) -> Page:
        """The revocations after a cursor of this hub."""
        return self._page(self._ask("GET", f"revocations?after={after}"))

    def stream(self, origin: str, epoch: str, after: int) -> Page:
        """The envelopes of one stream after a sequence; cursors are sequences."""
        return self._page(self._ask("GET", f"streams/{origin}/{epoch}?after={after}"))

    def _page(self, reply: _Reply) -> Page:
        return self._understood(lambda: Page.read(reply.headers, reply.body, _MOST_BYTES))

    def _understood(self, reading: Callable[[], T]) -> T:
        try:
            return reading()
        except WireError as error:
            raise HubError(f"{self._url} does not answer as a hub of model_opt: {error}") from error

    def _ask(self, method: str, what: str, body: bytes = b"") -> _Reply:
        """The answer to a signed request, tried again while the hub is away or busy."""
        import tenacity

        def asked(retry_state: tenacity.RetryCallState) -> float:
            failure = retry_state.outcome.exception() if retry_state.outcome else None
            return failure.wait_s if isinstance(failure, _Again) else 0.0

        trying = tenacity.Retrying(
            stop=tenacity.stop_before_delay(self._deadline_s),
            wait=tenacity.wait_combine(tenacity.wait_random_exponential(multiplier=0.4, max=10), asked),
            retry=tenacity.retry_if_exception_type(_Again),
            reraise=True,
        )
        try:
            return trying(self._once, method, f"/v1/{quote(self._federation)}/{what}", body)
        except _Again as failure:
            raise failure.error from failure

    def _once(self, method: str, path: str, body: bytes) -> _Reply:
        for _ in range(2):
            response = self._send(method, path, body, self._take_nonce())
            if response.status != 401 or response.error()[0] != "stale_nonce":
                break
        return response

    def _take_nonce(self) -> str:
        nonce, self._nonce = self._nonce, ""
        if not nonce:
            self._send("GET", "/v1/nonce", b"", "")
            nonce, self._nonce = self._nonce, ""
        return nonce

    def _send(self, method: str, path: str, body: bytes, nonce: str) -> _Reply:
        import httpx

        request = self._http.build_request(method, self._url + path, content=body or None)
        if nonce:
            target = request.url.raw_path.decode("ascii")
            request.headers["Authorization"] = written(
                self._identity, method=method, target=target, audience=self._url, nonce=nonce, body=body
            )
        try:
            response = self._http.send(request, stream=True)
            try:
                body = self._read(response)
            finally:
                response.close()
        except httpx.TransportError as error:
            raise _Again(HubUnreachable(f"the hub {self._url} cannot be reached: {_plain(error)}")) from error
        self._nonce = response.headers.get(NONCE_HEADER, "")
        return self._checked(_Reply(status=response.status_code, headers=response.headers, body=body))

    def _read(self, response: "httpx.Response") -> bytes:
        parts: list[bytes] = []
        size = 0
        for part in response.iter_bytes():
            size += len(part)
            if size > _MOST_BYTES:
                raise HubError(f"the hub {self._url} sends more than {_MOST_BYTES} bytes at once")
            parts.append(part)
        return b"".join(parts)

    def _checked(self, response: _Reply) -> _Reply:
        status = response.status
        if status < 300:
            return response
        code, message = response.error()
        if status == 401 and code == "stale_nonce":
            return response
        if status in _BUSY:
            wait_s = response.headers.get("retry-after", "0")
            error = HubUnreachable(f"the hub {self._url} is busy ({status}): {message}")
            raise _Again(error, float(wait_s) if wait_s.isdecimal() else 0.0)
        raise HubRefused(f"the hub {self._url} refuses ({status}): {message}")


def _trust(authority: Path | None) -> Any:
    import ssl

    if authority is None:
        return True
    try:
        context = ssl.create_default_context()
        context.load_verify_locations(authority)
    except (OSError, ssl.SSLError) as error:
        raise InvalidInput(f"no certificates in {authority}: {error}") from error
    return context


def _plain(error: Exception) -> str:
    return str(error) or type(error).__name__
