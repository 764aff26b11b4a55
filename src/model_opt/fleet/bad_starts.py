"""Workers that cannot begin: who they are, why, and when there is no other that might."""

import threading
from collections.abc import Collection, Mapping

FAILED = "failed"
"""The ending of a search that no worker could begin."""
TRIES = 2
"""A start may fail for the moment: a device that is busy, a download."""
ALONE_TRIES = 5
"""After so many nobody waits any more for workers that have no place to start in yet."""


class BadStarts:
    """Counts, for each worker, the starts that failed since its last good one. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tries: dict[str, int] = {}
        self._reasons: dict[str, str] = {}

    def begun(self, worker: str) -> None:
        """A worker has come to start."""
        with self._lock:
            self._tries.setdefault(worker, 0)

    def failed(self, worker: str, why: str) -> None:
        """It could not, and will try again."""
        with self._lock:
            self._tries[worker] = self._tries.get(worker, 0) + 1
            self._reasons[worker] = why

    def worked(self, worker: str) -> None:
        """It could."""
        with self._lock:
            self._tries[worker] = 0
            self._reasons.pop(worker, None)

    def forget(self) -> None:
        """What was is no reason to end what begins now."""
        with self._lock:
            self._tries, self._reasons = {}, {}

    @property
    def reasons(self) -> Mapping[str, str]:
        """Why each of those that failed last did, by worker."""
        with self._lock:
            return dict(self._reasons)

    def all_failed(self, workers: Collection[str]) -> bool:
        """Whether each of `workers` failed `TRIES` times in a row; or `ALONE_TRIES` times each of them that has come at
        all, where others have found no place yet."""
        with self._lock:
            tries = [self._tries[worker] for worker in workers if worker in self._tries]
        return bool(tries) and min(tries) >= (TRIES if len(tries) == len(workers) else ALONE_TRIES)
