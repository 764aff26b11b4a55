"""The coordinator as a Ray actor: detached, on the head node, started again by Ray wherever it dies.

All that it decides is in `coordinator_state`, all that it keeps in `durable`; this file is the edge.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import ray
from filelock import BaseFileLock

from model_opt.actors.cluster import HEAD, NAMESPACE, coordinator_name
from model_opt.actors.metrics import FleetMetrics
from model_opt.actors.worker_pool import WorkerPool
from model_opt.errors import FleetError, FolderInUse, ModelOptError
from model_opt.fleet import submission
from model_opt.fleet.bad_starts import FAILED, BadStarts
from model_opt.fleet.concluding import Concluder, description_fact, descriptions_of, wanted_facts
from model_opt.fleet.coordinator_service import CoordinatorService
from model_opt.fleet.flush import Flush, context_fact, contexts_of
from model_opt.fleet.leases import Holder
from model_opt.fleet.logs import log_as_json
from model_opt.fleet.messages import MergedRow, Reply, WorkRequest
from model_opt.fleet.submission import Manifest, Submission, state_root
from model_opt.one_owner import take
from model_opt.search.conclusion import Conclusion
from model_opt.search.context import Context
from model_opt.search.trial import Trial

log = logging.getLogger(__name__)

RECONCILE_S = 1.0
OWNER_S = 3.0
"""How long the processes of a cluster that was killed may take to end."""


class Coordinator:
    """One search of a cluster. Everything it answers is on disk; after a restart it goes on with the next term."""

    def __init__(self, search: str, state: str | None) -> None:
        log_as_json(search=search, role="coordinator")
        self._search = search
        self._folder = state_root(state) / search
        self._service: CoordinatorService | None = None
        self._request: Submission | None = None
        self._manifest: Manifest | None = None
        self._flush: Flush | None = None
        self._closing = threading.Event()
        self._reconciler: threading.Thread | None = None
        self._opening = threading.Lock()
        self._owned: BaseFileLock | None = None
        self._starts = BadStarts()
        try:
            self._open_kept()
        except ModelOptError as error:  # Ray would call an actor dead for good that raises here
            log.warning("the search cannot be opened, until somebody asks again: %s", error)

    # submitting -----------------------------------------------------------------------------------------------------

    def is_open(self) -> bool:
        """Whether the search is whole, here on disk, and being searched. Raises `FleetError` where what is on disk
        cannot be used, or is another coordinator's."""
        self._open_kept(wait_s=OWNER_S)
        return self._service is not None

    def receive(self, number: int, chunk: bytes) -> None:
        """A piece of the factory's pickle; the same piece may come again."""
        self._open_kept(wait_s=OWNER_S)  # the folder is ours before anything is written to it
        path = self._folder / submission.FACTORY
        with self._on_disk(), path.open("r+b" if path.exists() else "w+b") as file:
            file.seek(number * submission.CHUNK_BYTES)
            file.write(chunk)
            file.truncate()

    def difference(self, manifest: Manifest, request: Submission) -> str | None:
        """What this search under the same name would have differently; None where it is the one that is kept."""
        _, own = self._serving()
        return None if self._manifest is None else submission.difference((self._manifest, own), (manifest, request))

    def complete(self, manifest: Manifest, request: Submission) -> None:
        """Everything is here: from now on the search needs its driver no more."""
        if self._service is None:
            with self._on_disk():
                submission.complete(self._folder, manifest, request)
            self._open_kept()

    async def discard_unmeasured(self) -> bool:
        """Forgets a search that ended before anything was measured, and ends: the next of its name begins anew. Whether
        it was one."""
        status = self._serving()[0].status()
        if not status["ending"] or status["settled"]:
            return False
        await self.shutdown()
        with self._on_disk():
            submission.remove(self._folder)
        return True

    def _open_kept(self, *, wait_s: float = 0.0) -> None:
        """Opens the search if it is whole and not open yet; a folder that could not be used may be by now."""
        with self._opening, self._on_disk():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._owned is None:
                self._owned = take(self._folder, timeout_s=wait_s)
            if self._service is None and submission.is_complete(self._folder):
                self._open()

    @contextmanager
    def _on_disk(self) -> Iterator[None]:
        """What the system says of the folder inside is told with its name."""
        try:
            yield
        except OSError as error:
            why = error.strerror or error
            raise FleetError(f"the state folder {self._folder} on the head node cannot be used: {why}") from error
        except FolderInUse as error:
            raise FleetError(
                f"the search {self._search!r} runs already: {error}; look at it or stop it from there, or give "
                "this one another name"
            ) from error

    def _open(self) -> None:
        self._manifest, self._request = submission.read(self._folder)
        self._service = CoordinatorService.at(self._folder, self._request.rules, fatal=_perish)
        if self._request.sharing is not None:
            self._flush = Flush(self._service, self._request.sharing)
        self._service.remember(wanted_facts(self._request))
        self._reconciler = threading.Thread(target=self._reconcile, name="model-opt-reconcile", daemon=True)
        self._reconciler.start()

    def _reconcile(self) -> None:
        """Keeps the workers that the cluster has room for, as long as the search lasts; and the metrics."""
        service, request = self._serving()
        pool, metrics = WorkerPool(self._search, request.placement), FleetMetrics(self._search)
        concluder = self._concluder
        while not self._closing.is_set():
            try:
                status = service.status()
                pool.dismiss() if status["ending"] else pool.reconcile()
                metrics.update(status, flush_lag_s=self._flush.lag_s if self._flush else 0.0)
                if status["ending"]:
                    self._starts.forget()
                    concluder.keep()
                elif not (status["settled"] or status["workers"]) and self._starts.all_failed(pool.workers):
                    service.stop(FAILED)
            except Exception:
                log.exception("the workers could not be looked after; trying again")
            self._closing.wait(RECONCILE_S)
        pool.dismiss(grace_s=0.0)

    def _serving(self) -> tuple[CoordinatorService, Submission]:
        if self._service is None:
            self._open_kept()
        if self._service is None or self._request is None:
            raise FleetError(f"the search {self._search!r} was never submitted as a whole: submit it again")
        return self._service, self._request

    @cached_property
    def _concluder(self) -> Concluder:
        service, request = self._serving()
        return Concluder(service, request.search)

    # workers --------------------------------------------------------------------------------------------------------

    async def ask(self, ask: WorkRequest) -> Reply:
        """A worker's turn; the answer leaves when it is on disk."""
        return await asyncio.wrap_future(self._serving()[0].submit(ask))

    async def heartbeat(self, holder: Holder, held: frozenset[str]) -> None:
        """A worker's heartbeat."""
        self._serving()[0].heartbeat(holder, held)

    async def begin(self, worker: str) -> bool:
        """A worker comes to start; whether the search goes on."""
        self._starts.begun(worker)
        return self._serving()[0].state.ending is None

    async def register(self) -> tuple[Manifest, Submission]:
        """What a new worker needs to know."""
        _, request = self._serving()
        if self._manifest is None:
            raise FleetError("there is no manifest")
        return self._manifest, request

    async def chunk(self, number: int) -> bytes:
        """A piece of the factory's pickle."""
        return await asyncio.to_thread(submission.read_chunk, self._folder / submission.FACTORY, number)

    async def introduce(self, worker: str, context: Context | None, description: Mapping[str, Any]) -> None:
        """What a worker's evaluator says of itself; `description` is JSON-like."""
        if "error" in description:
            self._starts.failed(worker, str(description["error"]))
        else:
            self._starts.worked(worker)
        facts = description_fact(worker, description) | (context_fact(context) if context else {})
        await asyncio.to_thread(self._serving()[0].remember, facts)

    # drivers --------------------------------------------------------------------------------------------------------

    async def status(self) -> dict[str, Any]:
        """Counts and where it stands."""
        service, request = self._serving()
        shared = self._flush.status() if self._flush else {}
        own = {"objective": request.rules.objective.metric, "cannot_begin": self._starts.reasons}
        return service.status() | await self.where() | own | shared

    async def where(self) -> dict[str, Any]:
        """Its name, its folder and its process; also of a search that is not whole."""
        return {"name": self._search, "state": str(self._folder), "pid": os.getpid()}

    async def trials(self, since: int) -> list[Trial]:
        """What settled after the first `since`, in its order; at most 1,000 at a time. `at_s` is wall time."""
        return self._serving()[0].trials()[since : since + 1000]

    async def rows(self) -> list[MergedRow]:
        """The merged rows."""
        return self._serving()[0].rows()

    async def facts(self) -> tuple[dict[str, Context], dict[str, Any]]:
        """The contexts by key, and what each worker's evaluator said."""
        service, _ = self._serving()
        return contexts_of(service.facts), descriptions_of(service.facts)

    async def conclusion(self) -> tuple[tuple[Trial, ...], Conclusion | None]:
        """The trials of the context most was measured in, with what was believed before, and what they tell."""
        return await asyncio.to_thread(self._concluder.concluded)

    async def extend(self, more: int, request: str) -> None:
        """More budget; a search that had ended goes on."""
        self._starts.forget()
        await asyncio.to_thread(self._serving()[0].extend, more, request)

    async def stop(self) -> None:
        """Ends the search; what was measured stays."""
        await asyncio.to_thread(self._serving()[0].stop)

    async def shutdown(self) -> None:
        """Ends the workers and flushes; the state folder stays, and the search can be resumed from it."""
        await asyncio.to_thread(self._shut)

    def _shut(self) -> None:
        self._closing.set()
        if self._reconciler is not None:
            self._reconciler.join()
        if self._flush is not None:
            self._flush.close()
        if self._service is not None:
            self._service.close()
        if self._owned is not None:
            self._owned.release()


def start_coordinator(search: str, state: str | None) -> Any:
    """The coordinator's handle; it is started where it does not run."""
    options = {
        "name": coordinator_name(search),
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "num_cpus": 0,
        "resources": HEAD,
        "max_restarts": -1,
        "max_task_retries": -1,
        "max_concurrency": 1000,
    }
    return ray.remote(Coordinator).options(**options).remote(search, state)


def _perish(error: BaseException) -> None:
    """Memory may be ahead of the disk: Ray starts a new life from what is on disk."""
    log.critical("the coordinator ends and is started again: %s", error)
    os._exit(1)
