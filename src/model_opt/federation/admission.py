"""What of the records that come from elsewhere is taken: signed by somebody trusted, possible, and uncontradicted."""

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum

from model_opt.errors import InvalidInput, WireError
from model_opt.federation.out_of_range import out_of_range
from model_opt.federation.ledger import Ledger, identity_of
from model_opt.federation.encoded_record import Sealed
from model_opt.federation.signing import verify
from model_opt.federation.wire import Limits, read_head


class Decision(StrEnum):
    """What becomes of a record. `OWN` says what the reader has measured itself: it is not heard a second time."""

    NEW = "new"
    KNOWN = "known"
    OWN = "own"
    REFUSED = "refused"
    CONTRADICTS = "contradicts"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A decision on one record, with its `reason` unless it was taken.

    `sealed` is there where a signature was found good. `quarantine` says that the record proves its origin wrong;
    `other` is the identity of a record that it contradicts, which must be looked at before that is proof.
    """

    decision: Decision
    identity: str
    origin: str
    reason: str = ""
    sealed: Sealed | None = None
    quarantine: bool = False
    other: str = ""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Judges records for one replica of one federation. `own_epochs` are the epochs of `own` that are not taken."""

    federation: str
    trusted: Collection[str]
    authorities: Collection[str] = ()
    own: str = ""
    own_epochs: Collection[str] = ()
    limits: Limits = field(default_factory=Limits)

    def judge(self, data: bytes, ledger: Ledger) -> Verdict:
        """The verdict on bytes from anywhere; never raises. The caller notes in `ledger` what it keeps."""
        try:
            head = read_head(data, self.limits)
            identity = identity_of(head)
        except (WireError, InvalidInput) as error:
            return Verdict(decision=Decision.REFUSED, identity="", origin="", reason=str(error))
        if head.federation != self.federation:
            reason = f"of federation {head.federation[:80]!r}; this is {self.federation!r}"
            return Verdict(decision=Decision.REFUSED, identity=identity, origin=head.origin, reason=reason)
        if head.origin == self.own and head.fields.get("epoch") in self.own_epochs:
            return Verdict(decision=Decision.OWN, identity=identity, origin=head.origin, reason="measured here")
        try:
            sealed = verify(data, self.trusted, authorities=self.authorities, limits=self.limits)
        except WireError as error:
            return Verdict(decision=Decision.REFUSED, identity=identity, origin=head.origin, reason=str(error))
        if ledger.knows(head):
            return Verdict(decision=Decision.KNOWN, identity=identity, origin=head.origin, sealed=sealed)
        return self._weigh(sealed, ledger.conflict(head))

    def _weigh(self, sealed: Sealed, other: str | None) -> Verdict:
        identity, origin = sealed.identity, sealed.record.origin
        if other is not None:
            reason = f"contradicts {other}"
            decision = Decision.CONTRADICTS
            return Verdict(
                decision=decision, identity=identity, origin=origin, reason=reason, sealed=sealed, other=other
            )
        claim = next(filter(None, map(out_of_range, sealed.envelopes)), None)
        if claim is not None:
            decision = Decision.REFUSED
            return Verdict(
                decision=decision, identity=identity, origin=origin, reason=claim, sealed=sealed, quarantine=True
            )
        return Verdict(decision=Decision.NEW, identity=identity, origin=origin, sealed=sealed)
