"""Merged rows on their way to a knowledge store: behind the search, never in its way, no number used twice."""

import base64
import logging
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, cast

from model_opt.errors import ModelOptError, StoreConflict
from model_opt.federation.envelope import FIRST, new_epoch
from model_opt.federation.known import InspectableStore
from model_opt.federation.recorder import storable
from model_opt.federation.store import KnowledgeStore
from model_opt.federation.stream import Stream
from model_opt.federation.wire import encode
from model_opt.federation.wire_rows import context_fields, context_of
from model_opt.fleet.coordinator_service import CoordinatorService
from model_opt.fleet.messages import MergedRow, RowId
from model_opt.fleet.submission import Sharing
from model_opt.fleet.untold import Untold, counts_in, told
from model_opt.search.context import Context
from model_opt.storage.open import open_store

log = logging.getLogger(__name__)

FLUSH_S = 2.0
MOST_ROWS = 5_000
OUTBOX = "outbox"
RENEWED = "renewed"
"""Facts: the last envelope; the epoch that took the place of the search's own, and what those before it told."""
_CONTEXT = "context/"


def context_fact(context: Context) -> dict[str, object]:
    """`context` as a fact that the coordinator keeps; rows only carry its key."""
    return {f"{_CONTEXT}{context.key}": context_fields(context)}


def contexts_of(facts: Mapping[str, object]) -> dict[str, Context]:
    """The contexts among the coordinator's facts, by key."""
    found = (
        context_of(fields) for name, fields in facts.items() if name.startswith(_CONTEXT) and isinstance(fields, list)
    )
    return {context.key: context for context in found}


class Flush:
    """Sends rows that changed, as cumulative envelopes of the search's epoch, every `FLUSH_S` seconds.

    An envelope is kept by the coordinator before it is sent, and sent again after a restart: the store takes it once.
    A store that cannot be reached is tried again; the search goes on. Where the store has other envelopes of the same
    numbers, this state folder was brought back from a backup or copied: what the store has not is told in a new epoch.
    """

    def __init__(self, service: CoordinatorService, sharing: Sharing) -> None:
        self._service, self._sharing = service, sharing
        self._waiting: dict[RowId, MergedRow] = {}
        self._untold = self._read_renewed()
        self._stop = threading.Event()
        self._since: float | None = None
        self.error: str | None = None
        self._thread = threading.Thread(target=self._run, name="model-opt-flush", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Sends what is left, once, and lets the store go."""
        self._stop.set()
        self._thread.join()

    @property
    def lag_s(self) -> float:
        """How long the oldest row that is not in the store has waited, about; 0 where all are there."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def unflushed(self) -> int:
        """Rows that are not in the store yet; what is being sent counts as one."""
        return self._service.dirty + len(self._waiting) + bool(self._outbox().get("bytes"))

    def status(self) -> dict[str, object]:
        """What is on its way, JSON-like."""
        return {
            "flush_lag_s": self.lag_s,
            "flush_error": self.error,
            "unflushed": self.unflushed,
            "restored": self._restored,
        }

    def _run(self) -> None:
        with ExitStack() as opened:
            store: KnowledgeStore | None = None
            done = False
            while not done:
                done = self._stop.wait(FLUSH_S)
                self._since = self._since or (time.monotonic() - FLUSH_S if self.unflushed else None)
                try:
                    if store is None:
                        store = open_store(self._sharing.store, federation=self._sharing.federation)
                        opened.callback(store.close)
                    while self._send(store):
                        pass
                    self._since, self.error = None, None
                except Exception as error:  # whatever it is: rows that wait are sent with the next round
                    self.error = f"{type(error).__name__}: {error}"
                    log.warning(
                        "the knowledge store cannot be written, trying again: %s",
                        self.error,
                        exc_info=not isinstance(error, ModelOptError),
                    )

    def _send(self, store: KnowledgeStore) -> bool:
        """As `_send_some`, and begins a new epoch where the store knows other envelopes of this one."""
        try:
            return self._send_some(store)
        except StoreConflict:
            self._renew(store)
            return True

    def _send_some(self, store: KnowledgeStore) -> bool:
        """Sends what is in the outbox, then the next rows; whether there may be more."""
        self._send_outbox(store)
        self._waiting |= {row.row_id: row for row in self._changed()}
        contexts = contexts_of(self._service.facts)
        ready = [key for key, row in self._waiting.items() if row.context in contexts][:MOST_ROWS]
        if not ready:
            return False
        sequence, previous = self._last()
        sharing = self._sharing
        stream = Stream(
            origin=sharing.origin,
            federation=store.federation,
            epoch=self._epochs()[-1],
            sequence=sequence,
            previous=previous,
        )
        rows = [(row, storable(row.moments, sharing.metrics)) for row in (self._waiting[key] for key in ready)]
        entries = [(row.plan, contexts[row.context], moments) for row, moments in rows if moments]
        if not entries:
            for key in ready:
                del self._waiting[key]
            return bool(self._waiting)
        envelope = stream.mint(sharing.signature, entries)
        raw = encode(envelope)
        outbox = {"sequence": envelope.sequence, "digest": stream.previous, "bytes": base64.b64encode(raw).decode()}
        self._service.remember({OUTBOX: outbox})
        for key in ready:
            del self._waiting[key]
        self._send_outbox(store)
        return bool(self._waiting)

    def _outbox(self) -> Mapping[str, object]:
        outbox = self._service.facts.get(OUTBOX)
        return outbox if isinstance(outbox, dict) else {}

    def _last(self) -> tuple[int, str]:
        outbox = self._outbox()
        return (int(str(outbox["sequence"])), str(outbox["digest"])) if outbox else (0, FIRST)

    def _send_outbox(self, store: KnowledgeStore) -> None:
        outbox = self._outbox()
        if outbox.get("bytes"):
            store.append(base64.b64decode(str(outbox["bytes"])))
            self._service.remember({OUTBOX: {**outbox, "bytes": ""}})

    # a state folder that is older than what the store has of it -----------------------------------------------------

    @property
    def _restored(self) -> str | None:
        """What became of a search that was brought back, in a sentence; None where it was not."""
        earlier = len(self._epochs()) - 1
        if not earlier:
            return None
        return f"the store knew later results than this state folder: what it has not is told in epoch {earlier + 1}"

    def _changed(self) -> list[MergedRow]:
        rows = self._service.take_dirty()
        return self._untold.changed() if self._untold else rows

    def _renewed(self) -> Mapping[str, Any]:
        renewed = self._service.facts.get(RENEWED)
        return renewed if isinstance(renewed, dict) else {"epochs": [], "told": []}

    def _epochs(self) -> list[str]:
        """The epochs in which this search told something, the present one last."""
        return [self._service.state.epoch, *self._renewed()["epochs"]]

    def _read_renewed(self) -> Untold | None:
        renewed = self._renewed()
        counts = {(plan, context): int(count) for plan, context, count in renewed["told"]}
        return Untold(self._service.results, counts, self._service.rules.whole_only) if renewed["epochs"] else None

    def _renew(self, store: KnowledgeStore) -> None:
        """Begins a new epoch: with what settled since this life began, and with what the store has not of before."""
        epochs, service = self._epochs(), self._service
        before = [result for number, result in service.results() if number <= service.kept_before]
        counts = counts_in(cast(InspectableStore, store), self._sharing.origin, epochs)
        skipped = told(before, counts, service.rules.whole_only)
        facts = {"epochs": [*epochs[1:], new_epoch()], "told": [[*row, count] for row, count in skipped.items()]}
        service.remember({RENEWED: facts, OUTBOX: {}})
        self._waiting, self._untold = {}, self._read_renewed()
        log.warning("%s", self._restored)
