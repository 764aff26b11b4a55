"""A search worker as a Ray actor: one per GPU, fraction or CPU slot; it plans, and a child of its own measures."""

import json
import logging
import os
import signal
import threading
import time
from functools import partial
from typing import Any

import ray

from model_opt.actors.cluster_measurer import ClusterMeasurer, child_of_search, slot_options
from model_opt.actors.ray_link import RayLink, child_of
from model_opt.errors import ModelOptError
from model_opt.fleet.coordinator_state import REPLACED
from model_opt.fleet.leases import Holder
from model_opt.fleet.logs import log_as_json
from model_opt.fleet.proposer import TreeProposer
from model_opt.fleet.submission import Submission
from model_opt.fleet.time_left import TimeLeft
from model_opt.fleet.worker_loop import WorkerLoop
from model_opt.fleet.worker_slots import Slot
from model_opt.fleet.worker_state import WorkerState
from model_opt.measuring.kernels import compile_kernels
from model_opt.measuring.measurer import Measurer
from model_opt.measuring.timing_lock import TimingLock
from model_opt.search.context import Context
from model_opt.search.evaluator import Description

log = logging.getLogger(__name__)

RETRY_S = 2.0
MOST_RETRY_S = 60.0


class SearchWorker:
    """Works from its start until the search ends. Ray starts it again where its process dies."""

    def __init__(self, search: str, slot: Slot, remote: bool = False) -> None:
        """`remote`: it measures in `slot` from afar."""
        log_as_json(search=search, role="worker", worker=slot.name)
        self._search, self._name, self._slot, self._remote = search, slot.name, slot, remote
        self._loop: WorkerLoop | None = None
        self._leaving = threading.Event()
        self._ending: str | None = None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_sigterm)
        self._thread = threading.Thread(target=self._work, name="model-opt-worker", daemon=True)
        self._thread.start()

    def leave(self) -> str | None:
        """Gives the leases back and ends the child; returns why the work ended."""
        self._leaving.set()
        if self._loop is not None:
            self._loop.leave()
        self._thread.join()
        return self._ending

    def pid(self) -> int:
        """The id of the worker's process."""
        return os.getpid()

    def _on_sigterm(self, number: int, frame: object) -> None:
        """A node is drained: leases go back at once, then the process ends."""
        threading.Thread(target=lambda: (self.leave(), os._exit(0)), daemon=True).start()

    def _work(self) -> None:
        """One search, again where it is extended; a start that fails is tried again, ever more slowly."""
        wait_s = RETRY_S
        while not self._leaving.is_set():
            try:
                link = RayLink(self._search)
                if link.begin(self._name):
                    self._ending = self._search_once(link)
                    if self._ending == REPLACED:
                        return
                wait_s = RETRY_S
            except Exception as error:
                log.exception("worker %s cannot work", self._name)
                self._report(error)
            self._leaving.wait(wait_s)
            wait_s = min(2 * wait_s, MOST_RETRY_S)

    def _search_once(self, link: RayLink) -> str:
        manifest, request = link.register()
        log.info("registered")
        with self._afar() if self._remote else child_of(link, (manifest, request)) as measurer:
            compile_kernels()
            described = measurer.describe()
            log.info("the measuring process is ready")
            known = described.context if isinstance(described.context, Context) else None
            link.introduce(self._name, known, json_like(described, ray.get_runtime_context().get_node_id()))
            self._loop = self._made_loop(link, request, measurer, described)
            return "left" if self._leaving.is_set() else self._loop.run()

    def _afar(self) -> Measurer:
        """Measures in the slot from here. Where the device is lost this process ends: Ray starts the worker anew, and
        what it held is leased again, to be blamed on no plan."""
        return ClusterMeasurer(
            partial(child_of_search, self._search), slot_options(self._slot), on_lost=lambda: os._exit(1)
        )

    def _made_loop(self, link: RayLink, request: Submission, measurer: Measurer, described: Description) -> WorkerLoop:
        # A slot's lives are all of one boot; with a wall clock that is set back a new one would look old.
        incarnation = f"{time.monotonic_ns():020d}-{os.getpid()}"
        return WorkerLoop(
            WorkerState(Holder(worker=self._name, incarnation=incarnation), described.context_key),
            link,
            measurer.measure,
            lambda budget: TreeProposer(self._name, request.search, budget, described.noise),
            interrupt=measurer.kill,
            left=TimeLeft(request.search.expected),
            wait=TimingLock().wait,
        )

    def _report(self, error: Exception) -> None:
        """Tells the coordinator why this worker cannot work; the driver shows it."""
        message = str(error) if isinstance(error, ModelOptError) else f"{type(error).__name__}: {error}"
        try:
            RayLink(self._search).introduce(self._name, None, {"error": message})
        except Exception as lost:
            log.warning("nor can that be told: %s", lost)


def json_like(described: Description, node: str) -> dict[str, Any]:
    """What is told of a worker's evaluator, as JSON holds it: what that cannot hold is turned into text. `node` is
    where it plans, and where it measures unless it said otherwise."""
    said = {name: value for name, value in vars(described).items() if name != "more"}
    kept: dict[str, Any] = json.loads(
        json.dumps({"measured_on": node, **said, **described.more, "planned_on": node}, default=str)
    )
    return kept
