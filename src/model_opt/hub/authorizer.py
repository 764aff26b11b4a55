"""Who may ask a hub for what: every check of a request that needs no web framework."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from model_opt.errors import ModelOptError, StoreError, WireError
from model_opt.hub import credentials
from model_opt.hub.audit import AuditLog
from model_opt.hub.counts import HubCounts
from model_opt.hub.hosted_federation import HostedFederation
from model_opt.hub.limits import HubLimits
from model_opt.hub.nonces import Nonces
from model_opt.hub.rates import Rates


class Refusal(ModelOptError):
    """A request that is refused: an HTTP status, a code for programs, and a sentence for people."""

    def __init__(self, status: int, code: str, message: str, wait_s: float = 0.0) -> None:
        """`wait_s` is when to ask again, where that helps."""
        super().__init__(message)
        self.status, self.code, self.message, self.wait_s = status, code, message, wait_s


@dataclass(frozen=True, kw_only=True)
class HubRequest:
    """A request: `target` is the path with its query, `header` that of the authorization, `length` the body's."""

    method: str
    target: str
    address: str
    header: str | None
    length: int | None


class Authorizer:
    """Checks requests before their bodies are read. One thread works with it at a time."""

    def __init__(
        self,
        federations: Mapping[str, HostedFederation],
        *,
        audiences: frozenset[str],
        limits: HubLimits,
        audit: AuditLog,
        counts: HubCounts,
        clock: Callable[[], float],
    ) -> None:
        """`audiences` are the addresses that this hub answers to; `clock` is in seconds, and never goes back."""
        self.federations, self.audiences, self.limits = federations, audiences, limits
        self.audit, self.counts = audit, counts
        self.nonces = Nonces(limits.nonce_s, clock)
        self._strangers = Rates(limits.strangers_per_s, limits.burst_s, clock)
        self._members = Rates(limits.requests_per_s, limits.burst_s, clock)

    def admit(self, ask: HubRequest, federation: str) -> tuple[HostedFederation, credentials.Credentials]:
        """Whose request this is, and the federation as it is hosted; raises `Refusal`, which has been logged."""
        try:
            return self._admit(ask, federation)
        except Refusal as refusal:
            self.refuse(ask, federation, refusal)
            raise
        except StoreError as error:
            self.counts.refused("allow_list")
            self.audit.write("failed", reason=str(error), federation=federation)
            message = "the hub's allow-list cannot be read, its audit log says why: nothing of this was acknowledged"
            raise Refusal(503, "allow_list", message, wait_s=5.0) from error

    def stranger(self, ask: HubRequest, *, count: bool = True) -> None:
        """Counts a request of somebody who has not shown who they are against their address; raises `Refusal`."""
        wait_s = self._strangers.wait_s(ask.address, count=count)
        if wait_s:
            raise Refusal(429, "too_often", "too many requests from this address", wait_s)

    def refuse(self, ask: HubRequest, federation: str, refusal: Refusal) -> None:
        """Logs and counts a refusal. Floods are counted only: a log is no target."""
        self.counts.refused(refusal.code)
        if refusal.code != "too_often":
            self.audit.write(
                "refused",
                reason=refusal.code,
                message=refusal.message,
                method=ask.method,
                target=ask.target,
                address=ask.address,
                federation=federation,
            )

    def connection_refused(self, limit: str, address: str) -> None:
        """Logs and counts that a connection was closed for a `limit`; any thread may call."""
        self.counts.refused(limit)
        self.audit.write("connection closed", reason=limit, address=address)

    def _admit(self, ask: HubRequest, federation: str) -> tuple[HostedFederation, credentials.Credentials]:
        said = self._signed(ask)
        hosted = self.federations.get(federation)
        if hosted is None:
            raise Refusal(404, "no_such_federation", f"this hub has no federation {federation[:80]!r}")
        if not hosted.allowed(said.origin):
            self.stranger(ask)
            advice = "its operator runs: model-opt hub allow ORIGIN"
            raise Refusal(
                403, "not_allowed", f"origin {said.origin} is not on the allow-list of {federation!r}; {advice}"
            )
        wait_s = self._members.wait_s(said.origin)
        if wait_s:
            raise Refusal(429, "too_often", "too many requests of this origin", wait_s)
        if ask.length is not None and ask.length > self.limits.max_body_bytes:
            raise self.too_large(f"{ask.length} bytes")
        return hosted, said

    def _signed(self, ask: HubRequest) -> credentials.Credentials:
        """Checks what needs no allow-list: signature, address, nonce. Failures count against the address."""
        self.stranger(ask, count=False)
        code = "not_signed"
        try:
            said = credentials.read(ask.header)
            code = "forged"
            epoch = said.epoch(ask.method, ask.target)
        except WireError as error:
            self.stranger(ask)
            raise Refusal(401, code, str(error)) from error
        if said.audience not in self.audiences:
            known = ", ".join(sorted(self.audiences))
            raise Refusal(401, "wrong_address", f"signed for {said.audience}; this hub is {known}")
        if not self.nonces.fresh(said.nonce):
            raise Refusal(401, "stale_nonce", "the nonce is not this hub's, was used, or is too old: ask for another")
        self.nonces.spend(said.nonce)
        if any(hosted.withdrawn(said.origin, epoch) for hosted in self.federations.values()):
            advice = "`model-opt identity rotate` makes another"
            raise Refusal(403, "withdrawn", f"the key that signed the request was withdrawn: {advice}")
        return said

    def too_large(self, what: str) -> Refusal:
        """The refusal of a body."""
        return Refusal(413, "too_large", f"{what}; the limit is {self.limits.max_body_bytes}: send it in parts")
