"""The workers of one search: started where the cluster has room, ended with the search."""

import contextlib
import logging
import time
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from model_opt.actors.cluster import NAMESPACE, living_workers, worker_name
from model_opt.actors.worker import SearchWorker
from model_opt.fleet.submission import Placement
from model_opt.fleet.worker_slots import Slot, nodes_of, worker_slots

log = logging.getLogger(__name__)

GRACE_S = 5.0
"""How long workers may take to end by themselves."""
WAITING_S = 60.0


class WorkerPool:
    """Reconciles what the cluster can hold with the workers that there are. For one thread."""

    def __init__(self, search: str, placement: Placement) -> None:
        self._search, self._placement = search, placement
        self._handles: dict[str, Any] = {}
        self._empty_since: float | None = None

    @property
    def workers(self) -> list[str]:
        """Their names, those included that wait for a place in the cluster."""
        return list(self._handles)

    def reconcile(self) -> None:
        """Starts a worker in every free slot and ends those without a node; adopts an earlier life's."""
        nodes: Any = ray.nodes()  # type: ignore[no-untyped-call]
        slots = {slot.name: slot for slot in worker_slots(nodes_of(nodes), self._placement)}
        self._look()
        for name in self._handles.keys() - slots.keys():
            self._end(self._handles.pop(name))
        for name in slots.keys() - self._handles.keys():
            self._handles[name] = self._start(slots[name])
        self._complain(bool(slots))

    def dismiss(self, grace_s: float = GRACE_S) -> None:
        """Ends all workers, after `grace_s` in which they end by themselves."""
        self._look()
        if not self._handles:
            return
        asked = [handle.leave.remote() for handle in self._handles.values()]
        ray.wait(asked, num_returns=len(asked), timeout=grace_s)
        for handle in self._handles.values():
            self._end(handle)
        self._handles = {}

    def _look(self) -> None:
        """Which workers there are: Ray starts those again whose process died, but not those whose node did."""
        living = living_workers(self._search)
        for slot in self._handles.keys() - living.keys():
            del self._handles[slot]
        for slot in living.keys() - self._handles.keys():
            with contextlib.suppress(ValueError):
                self._handles[slot] = ray.get_actor(living[slot], namespace=NAMESPACE)

    def _start(self, slot: Slot) -> Any:
        log.info("worker in slot %s", slot.name)
        options = {
            "name": worker_name(self._search, slot.name),
            "namespace": NAMESPACE,
            "lifetime": "detached",
            "get_if_exists": True,
            "max_restarts": -1,
            "max_concurrency": 4,
        }
        labels = self._placement.search_labels
        if labels is None:
            here = NodeAffinitySchedulingStrategy(slot.node_id, soft=False)
            options |= {"num_cpus": slot.cpus, "num_gpus": slot.gpus, "scheduling_strategy": here}
        else:
            options |= {"num_cpus": 0, "label_selector": dict(labels)}
        return ray.remote(SearchWorker).options(**options).remote(self._search, slot, labels is not None)

    @staticmethod
    def _end(handle: Any) -> None:
        try:
            ray.kill(handle, no_restart=True)
        except Exception as error:
            log.debug("a worker that should end is gone: %s", error)

    def _complain(self, any_slot: bool) -> None:
        """An impossible placement waits silently in Ray; here it is said."""
        if any_slot:
            self._empty_since = None
            return
        self._empty_since = self._empty_since or time.monotonic()
        if time.monotonic() - self._empty_since > WAITING_S:
            log.warning("no node of the cluster fits %s", self._placement)
            self._empty_since = time.monotonic()
