"""What the live page looks at: result folders, a fleet's state folder, a knowledge store. It only ever reads."""

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from model_opt.autotuner.folder import PROGRESS_FILE, RESULT_FILE, folders
from model_opt.errors import ModelOptError
from model_opt.federation.known import InspectableStore, show, stats
from model_opt.federation.trust import peers
from model_opt.fleet import submission
from model_opt.fleet.coordinator_service import STATE_FILE
from model_opt.report.view import View, of_fleet, of_folder
from model_opt.storage.address import redacted
from model_opt.storage.open import open_store

log = logging.getLogger(__name__)

NEIGHBOURS = 4
KNOWLEDGE_S = 3.0
"""How long what was read from the store is shown before it is read again."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A search and the state of its files: `version` differs when they do. `error` says why there is no view."""

    key: str
    version: str
    view: View | None
    error: str = ""


class Watching:
    """Searches and knowledge, read again only where files have changed. For any thread."""

    def __init__(self, roots: Sequence[Path], state: str | None, store: str | Path) -> None:
        """`roots` are looked through for result folders; `state` is a fleet's folder; `store` a URL or a path."""
        self._roots, self._state, self._store = list(roots), submission.state_root(state), store
        self._seen: dict[str, Seen] = {}
        self._lock = threading.Lock()
        self._known: tuple[float, Mapping[str, Any]] | None = None

    def runs(self) -> list[Seen]:
        """Every search, those that run first, then the newest."""
        with self._lock:
            found = {seen.key: seen for seen in self._look()}
            self._seen = found
            return sorted(found.values(), key=lambda seen: (not _runs(seen), _later(seen.version)))

    def run(self, key: str) -> Seen | None:
        """The search with this key, as it is now."""
        return next((seen for seen in self.runs() if seen.key == key), None)

    def _look(self) -> list[Seen]:
        local = [
            self._one(folder, (PROGRESS_FILE, RESULT_FILE), lambda f: of_folder(f, f.resolve().name))
            for folder in folders(self._roots)
        ]
        kept = sorted(self._state.glob("*/")) if self._state.is_dir() else []
        fleets = [
            self._one(folder, (STATE_FILE, f"{STATE_FILE}-wal"), of_fleet)
            for folder in kept
            if submission.is_complete(folder)
        ]
        return local + fleets

    def _one(self, folder: Path, names: Sequence[str], read: Callable[[Path], View]) -> Seen:
        key = hashlib.blake2b(str(folder.resolve()).encode(), digest_size=8).hexdigest()
        version = _version([folder / name for name in names])
        before = self._seen.get(key)
        if before is not None and before.version == version and not _runs(before):
            return before
        try:
            return Seen(key=key, version=version, view=read(folder))
        except (ModelOptError, OSError) as error:
            return Seen(key=key, version=version, view=None, error=f"{folder}: {error}")

    def knowledge(self) -> Mapping[str, Any]:
        """What the store holds, JSON-like: `models` with their neighbours, `origins` with trust; or an `error`."""
        with self._lock:
            if self._known is None or time.monotonic() - self._known[0] > KNOWLEDGE_S:
                self._known = (time.monotonic(), _knowledge(self._store))
            return self._known[1]


def _knowledge(where: str | Path) -> Mapping[str, Any]:
    if isinstance(where, Path) and not where.exists():
        return {"store": str(where), "error": "there is nothing here yet: the first model-opt optimize makes it"}
    try:
        opened = cast(InspectableStore, open_store(where))
        try:
            return _told(opened) | {"store": redacted(str(where))}
        finally:
            opened.close()
    except ModelOptError as error:
        return {"store": redacted(str(where)), "error": str(error)}


def _told(store: InspectableStore) -> dict[str, Any]:
    models, about, trusted = show(store), stats(store), peers()
    return {
        "models": [
            {
                "key": model.signature.key,
                "family": str(model.signature.family),
                "parameters": model.signature.parameters,
                "layers": model.signature.layers,
                "plans": model.plans,
                "samples": max(model.metrics.values(), default=0),
                "origins": list(model.origins),
                "neighbours": [
                    {"key": near.key, "family": str(near.family), "similarity": round(alike, 4)}
                    for near, alike in store.nearest(model.signature, NEIGHBOURS + 1)
                    if near.key != model.signature.key
                ][:NEIGHBOURS],
            }
            for model in models
        ],
        "origins": [
            {
                "origin": origin.origin,
                "records": origin.records,
                "epochs": len(origin.epochs),
                "revoked": origin.revoked,
                "name": trusted[origin.origin].name if origin.origin in trusted else "",
                "trust": trusted[origin.origin].trust if origin.origin in trusted else None,
            }
            for origin in about.origins
        ],
        "samples": dict(about.samples),
        "rows": about.counts.rows,
    }


def _runs(seen: Seen) -> bool:
    return seen.view is not None and seen.view.running


def _later(version: str) -> float:
    return -float(version.partition("/")[0])


def _version(paths: Sequence[Path]) -> str:
    """Newest change (seconds) and sizes of the files that are there."""
    told = [path.stat() for path in paths if path.exists()]
    newest = max((each.st_mtime for each in told), default=0.0)
    return f"{newest:.6f}/{'-'.join(str(each.st_size) for each in told)}"
