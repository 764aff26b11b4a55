"""Push, pull and sync: what a deployment and a hub have of each other, made equal."""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from filelock import FileLock

from model_opt.atomic import write_private
from model_opt.errors import HubError, StoreError
from model_opt.exchange.intake import Intake, Taken
from model_opt.exchange.outgoing import Outgoing
from model_opt.exchange.shared import Shared
from model_opt.federation.encoded_record import EncodedRecord
from model_opt.federation.export_policy import ExportPolicy
from model_opt.federation.identity import Identity, identity_folder
from model_opt.federation.known import InspectableStore
from model_opt.federation.record_index import Reached, link_of
from model_opt.hub.answers import Page, StatusAnswer, stream_name
from model_opt.hub.client import HubClient

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PushOutcome:
    """What a push did. `refused` counts records by the hub's reason, `held_back` rows that stay, by reason.

    `missing` are streams of which the hub lacks something that this deployment has not got either.
    """

    sent: int
    new: int
    known: int
    refused: Mapping[str, int]
    held_back: Mapping[str, int]
    missing: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """Our side of an exchange. `folder` is the identity's; None is the user's own."""

    store: InspectableStore
    identity: Identity
    folder: Path | None = None
    rules: ExportPolicy = field(default_factory=ExportPolicy)


def push(here: Deployment, hub: HubClient) -> PushOutcome:
    """Tells the hub what it does not know yet: this deployment's stream, and what others have signed.

    Raises `HubError`, before anything new is signed, where the hub has heard more under this key than was said here.
    """
    outgoing = Outgoing(here.identity, here.store.federation, here.folder)
    status = hub.status()
    heard = status.streams.get(stream_name(here.identity.origin, here.identity.epoch), (0, ""))
    held_back = outgoing.say(here.store, here.rules, heard=Reached(*heard)).held_back
    counts: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    missing: set[str] = set()
    for batch in _batches(_lacking(Shared(here.store, outgoing, here.identity), status), status.max_body_bytes):
        answer = hub.push(batch)
        counts.update(sent=len(batch), new=answer.new, known=answer.known)
        refused.update(answer.refused)
        missing = set(answer.missing)
    return PushOutcome(
        sent=counts["sent"],
        new=counts["new"],
        known=counts["known"],
        refused=dict(refused),
        held_back=held_back,
        missing=tuple(sorted(missing)),
    )


def pull(here: Deployment, hub: HubClient, url: str) -> Taken:
    """Takes in what the hub has after the last pull, then whatever is missing of trusted streams.

    Revocations that this store lacks come first: what they withdraw is not believed in between, nor where the store was
    begun anew or their authority was trusted only after they had been pulled.
    """
    bookmarks = Bookmarks(here.folder)
    status = hub.status()
    place = f"{url.rstrip('/')} {here.store.federation} {here.store!r}"
    intake = Intake(here.store, here.identity, folder=here.folder)
    cursor = bookmarks.read(place, status.hub)
    cursor = cursor if cursor <= status.cursor else 0
    if not intake.ledger.laws.issuperset(status.laws):
        _take_pages(intake, hub.revocations)
    _take_pages(intake, hub.pull, cursor, taken=partial(bookmarks.write, place, status.hub))
    _ask_for_gaps(here, hub, intake, status)
    return intake.outcome()


def sync(
    here: Deployment,
    hub: HubClient,
    url: str,
    *,
    every_s: float | None,
    tell: Callable[[PushOutcome, Taken], None],
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Pushes and pulls, once or for ever. A hub or store that is away for a while is waited for."""
    while True:
        try:
            tell(push(here, hub), pull(here, hub, url))
        except (HubError, StoreError) as error:
            if every_s is None:
                raise
            _log.warning("%s; trying again in %g s", error, every_s)
        if every_s is None:
            return
        sleep(every_s)


class Bookmarks:
    """How far each hub was pulled into each store, in a file beside the keys."""

    def __init__(self, folder: Path | None) -> None:
        """Nothing is touched yet."""
        self._path = (folder or identity_folder()) / "hubs.json"

    def read(self, place: str, hub: str) -> int:
        """The cursor for `place`; 0 where there is none, or where the hub is another than it was."""
        known = self._all().get(place, {})
        return int(known.get("cursor", 0)) if known.get("hub") == hub else 0

    def write(self, place: str, hub: str, cursor: int) -> None:
        """Keeps the cursor for `place`."""
        with FileLock(self._path.with_suffix(".lock"), timeout=10):
            known = self._all() | {place: {"hub": hub, "cursor": cursor}}
            write_private(self._path, json.dumps(known, indent=1))

    def _all(self) -> dict[str, dict[str, str | int]]:
        try:
            found = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}  # only a saving of work: without it everything is pulled again, and known already
        return found if isinstance(found, dict) else {}


def _lacking(records: Iterable[EncodedRecord], status: StatusAnswer) -> Iterator[bytes]:
    reached, laws = status.reached(), frozenset(status.laws)
    for encoded in records:
        if encoded.kind != "envelope":
            if encoded.digest not in laws:
                yield encoded.data
            continue
        link = link_of(encoded.head)
        if link.sequence > reached.get((link.stream[1], link.stream[2]), 0):
            yield encoded.data


def _batches(records: Iterable[bytes], most_bytes: int) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for data in records:
        if batch and size + len(data) + 4 > most_bytes:
            yield batch
            batch, size = [], 0
        batch.append(data)
        size += len(data) + 4
    if batch:
        yield batch


def _ask_for_gaps(here: Deployment, hub: HubClient, intake: Intake, status: StatusAnswer) -> None:
    """Whatever the hub has of trusted streams and this store lacks: a bundle that was skipped, a hub that was restored,
    an origin that has only now been trusted."""
    for (origin, epoch), has in sorted(status.reached().items()):
        stream = (here.store.federation, origin, epoch)
        if origin not in intake.trusted or intake.is_echo(origin, epoch):
            continue
        at = intake.ledger.reached.get(stream)
        known = at.sequence if at else 0
        if known < has:
            _take_pages(intake, partial(hub.stream, origin, epoch), known)


def _take_pages(
    intake: Intake, ask: Callable[[int], Page], cursor: int = 0, taken: Callable[[int], object] = lambda _: None
) -> None:
    """Takes in page after page; `taken` hears the cursor after each."""
    more = True
    while more:
        page = ask(cursor)
        intake.take(data for _, data in page.records)
        cursor, more = page.cursor, page.more and bool(page.records)
        taken(cursor)
