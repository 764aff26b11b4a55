"""What of the records that come from elsewhere is taken: signed by somebody trusted, possible, and uncontradicted."""

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum

from model_opt.errors import InvalidInput, WireError
from model_opt.federation.encoded_record import EncodedRecord
from model_opt.federation.out_of_range import out_of_range
from model_opt.federation.record_index import RecordIndex
from model_opt.federation.signing import verify
from model_opt.federation.wire import WireLimits


class Admission(StrEnum):
    """What becomes of a record. `OWN` says what the reader has measured itself: it is not heard a second time."""

    NEW = "new"
    KNOWN = "known"
    OWN = "own"
    REFUSED = "refused"
    CONTRADICTS = "contradicts"


@dataclass(frozen=True, kw_only=True)
class AdmissionVerdict:
    """A decision on one record, with its `reason` unless it was taken.

    `encoded` is there, and its body decoded, where a signature was found good. `quarantine` says that the record proves
    its origin wrong; `other` is the identity of a record that it contradicts, which must be looked at before that is
    proof.
    """

    decision: Admission
    identity: str
    origin: str
    reason: str = ""
    encoded: EncodedRecord | None = None
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
    limits: WireLimits = field(default_factory=WireLimits)

    def judge(self, data: bytes, ledger: RecordIndex) -> AdmissionVerdict:
        """The verdict on bytes from anywhere; never raises. The caller notes in `ledger` what it keeps."""
        try:
            encoded = EncodedRecord.open(data, self.limits)
            head, identity = encoded.head, encoded.identity
        except (WireError, InvalidInput) as error:
            return AdmissionVerdict(decision=Admission.REFUSED, identity="", origin="", reason=str(error))
        if head.federation != self.federation:
            reason = f"of federation {head.federation[:80]!r}; this is {self.federation!r}"
            return AdmissionVerdict(decision=Admission.REFUSED, identity=identity, origin=head.origin, reason=reason)
        if head.origin == self.own and head.fields.get("epoch") in self.own_epochs:
            return AdmissionVerdict(
                decision=Admission.OWN, identity=identity, origin=head.origin, reason="measured here"
            )
        try:
            verify(encoded, self.trusted, authorities=self.authorities)
        except WireError as error:
            return AdmissionVerdict(
                decision=Admission.REFUSED, identity=identity, origin=head.origin, reason=str(error)
            )
        if ledger.knows(head):
            return AdmissionVerdict(decision=Admission.KNOWN, identity=identity, origin=head.origin, encoded=encoded)
        return self._weigh(encoded, ledger.conflict(head))

    def _weigh(self, encoded: EncodedRecord, other: str | None) -> AdmissionVerdict:
        identity, origin = encoded.identity, encoded.record.origin
        if other is not None:
            reason = f"contradicts {other}"
            decision = Admission.CONTRADICTS
            return AdmissionVerdict(
                decision=decision, identity=identity, origin=origin, reason=reason, encoded=encoded, other=other
            )
        claim = next(filter(None, map(out_of_range, encoded.envelopes)), None)
        if claim is not None:
            decision = Admission.REFUSED
            return AdmissionVerdict(
                decision=decision, identity=identity, origin=origin, reason=claim, encoded=encoded, quarantine=True
            )
        return AdmissionVerdict(decision=Admission.NEW, identity=identity, origin=origin, encoded=encoded)
