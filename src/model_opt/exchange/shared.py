"""Sharing by file: what leaves this deployment is coarse, counted and signed; what comes is checked, then kept."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model_opt.errors import InvalidInput
from model_opt.exchange.bundle import read_bundle, write_bundle
from model_opt.exchange.intake import Intake, Taken
from model_opt.exchange.outgoing import Outgoing
from model_opt.federation.encoded_record import EncodedRecord
from model_opt.federation.envelope import Envelope, Revocation
from model_opt.federation.export_policy import ExportPolicy
from model_opt.federation.identity import Identity, deployment_identity
from model_opt.federation.known import InspectableStore
from model_opt.federation.signing import sign

START = "0.0"
_CURSOR = re.compile(r"(\d{1,18})\.(\d{1,18})")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """`told` counts envelopes of this deployment, `relayed` records of others, as they came. `held_back` counts rows
    that stay, by reason. `cursor` is where the next export with `since` goes on."""

    records: int
    told: int
    relayed: int
    size_bytes: int
    held_back: Mapping[str, int]
    cursor: str


@dataclass(frozen=True, kw_only=True)
class ExportPreview:
    """Every field that an export would write: each new envelope whole, and the number of records told before."""

    envelopes: tuple[Mapping[str, Any], ...]
    told_before: int
    relayed: Mapping[str, int]
    held_back: Mapping[str, int]


def export_bundle(
    store: InspectableStore,
    path: Path,
    *,
    since: str = START,
    rules: ExportPolicy = ExportPolicy(),  # noqa: B008 - frozen
    folder: Path | None = None,
) -> Exported:
    """Writes to a bundle what this deployment tells of `store`, and what others have signed.

    Only after the cursor `since` of an earlier export, where one is given. `folder` is the identity's.
    """
    identity = deployment_identity(folder)
    outgoing = Outgoing(identity, store.federation, folder)
    said = outgoing.say(store, rules)
    shared = Shared(store, outgoing, identity, since)
    count = write_bundle(path, (encoded.data for encoded in shared))
    return Exported(
        records=count,
        told=shared.told,
        relayed=count - shared.told,
        size_bytes=path.stat().st_size,
        held_back=said.held_back,
        cursor=shared.cursor,
    )


def preview(
    store: InspectableStore,
    *,
    since: str = START,
    rules: ExportPolicy = ExportPolicy(),  # noqa: B008 - frozen
    folder: Path | None = None,
) -> ExportPreview:
    """What `export_bundle` would write; nothing is written."""
    identity = deployment_identity(folder)
    outgoing = Outgoing(identity, store.federation, folder)
    said = outgoing.say(store, rules, dry_run=True)
    shared = Shared(store, outgoing, identity, since)
    relayed = Counter(one.head.origin for one in shared if one.head.origin != identity.origin)
    return ExportPreview(
        envelopes=tuple(fields(envelope) for envelope in said.envelopes),
        told_before=shared.told,
        relayed=dict(relayed),
        held_back=said.held_back,
    )


def import_bundle(store: InspectableStore, path: Path, *, dry_run: bool = False, folder: Path | None = None) -> Taken:
    """Takes in a bundle. Raises `WireError` where it is damaged, before anything is kept."""
    for _ in read_bundle(path):
        pass
    intake = Intake(store, deployment_identity(folder), folder=folder, dry_run=dry_run)
    intake.take(read_bundle(path))
    return intake.outcome()


def withdraw(
    store: InspectableStore,
    origin: str,
    *,
    reason: str,
    epochs: Mapping[str, int] | None = None,
    folder: Path | None = None,
) -> tuple[int, int]:
    """Withdraws here what `origin` has said, as a record that this deployment signs; rows before and after.

    It travels with exports, and is followed by those who have made this deployment an authority.
    """
    identity = deployment_identity(folder)
    record = Revocation(
        federation=store.federation,
        origin=origin,
        authority=identity.origin,
        reason=reason,
        epochs=dict(epochs or {}),
    )
    before = store.counts().rows
    store.append(sign(identity, record))
    return before, store.counts().rows


class Shared:
    """The signed records that leave, each once: this deployment's stream, then what others told `store`.

    What is not signed never leaves. `cursor` and `told` hold once it was gone through.
    """

    def __init__(self, store: InspectableStore, outgoing: Outgoing, identity: Identity, since: str = START) -> None:
        """Raises `InvalidInput` for a `since` that no export has given."""
        found = _CURSOR.fullmatch(since)
        if not found:
            raise InvalidInput(f"{since!r} is no cursor of an export, which looks like {START}")
        self._store, self._outgoing, self._identity = store, outgoing, identity
        self._own, self._others = (int(number) for number in found.groups())
        self.told = 0

    @property
    def cursor(self) -> str:
        """Where the next goes on."""
        return f"{self._own}.{self._others}"

    def __iter__(self) -> Iterator[EncodedRecord]:
        seen: set[str] = set()
        since = self._own
        for cursor, data in self._outgoing.records():
            encoded = EncodedRecord.open(data)
            seen.add(encoded.digest)
            if cursor > since:
                self._own = cursor
                self.told += 1
                yield encoded
        for cursor, data in self._store.envelopes(self._others):
            self._others = cursor
            encoded = EncodedRecord.open(data)
            if encoded.signed and encoded.digest not in seen:
                yield encoded


def fields(envelope: Envelope) -> dict[str, Any]:
    """All that an envelope says, as plain values."""
    signature = envelope.signature
    return {
        "federation": envelope.federation,
        "origin": envelope.origin,
        "epoch": envelope.epoch,
        "sequence": envelope.sequence,
        "previous": envelope.previous,
        "signature": {
            "family": str(signature.family),
            "parameters": signature.parameters,
            "layers": signature.layers,
            "operators": dict(signature.operators),
            "stages": [[stage.width, stage.layers, stage.share] for stage in signature.stages],
        },
        "contexts": [asdict(context) for context in envelope.contexts],
        "rows": [
            {
                "plan": {choice.decision: choice.option for choice in plan.choices},
                "versions": {choice.decision: choice.version for choice in plan.choices},
                "context": context,
                "moments": {name: asdict(values) for name, values in moments.items()},
            }
            for plan, context, moments in zip(
                envelope.block.plans(), envelope.block.contexts.tolist(), envelope.block.moments(), strict=True
            )
        ],
    }
