"""Measuring on one device for a worker that plans on another: an actor that holds the measuring process."""

import logging
import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import ray
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from model_opt.actors.ray_link import RayLink, child_of
from model_opt.fleet.worker_slots import Slot
from model_opt.measuring.child import MeasuringChild
from model_opt.search.evaluator import Outcome, Purpose
from model_opt.search.plan import Plan

log = logging.getLogger(__name__)


class MeasuringActor:
    """A Ray actor in a slot: a measuring process and the way to it. It ends with the worker that started it."""

    def __init__(self, search: str) -> None:
        link = RayLink(search)
        self._child: MeasuringChild = child_of(link, link.register())

    def describe(self) -> Mapping[str, object]:
        """See `MeasuringChild`; with the node that it measures on."""
        return {**self._child.describe(), "measured_on": ray.get_runtime_context().get_node_id()}

    def measure(self, plan: Plan, purpose: Purpose) -> Outcome:
        """See `MeasuringChild`."""
        return self._child.measure(plan, purpose)

    def kill(self) -> None:
        """See `MeasuringChild`."""
        self._child.kill()

    def close(self) -> None:
        """See `MeasuringChild`."""
        self._child.close()


class RemoteChild:
    """A `MeasuringChild` behind a `MeasuringActor` in `slot`. Where that is lost, this process ends: Ray starts the
    worker anew, and what it held is leased again, to be blamed on no plan."""

    def __init__(self, search: str, slot: Slot) -> None:
        options = {
            "num_cpus": slot.cpus,
            "num_gpus": slot.gpus,
            "max_concurrency": 2,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(slot.node_id, soft=False),
        }
        self._bench: Any = ray.remote(MeasuringActor).options(**options).remote(search)

    def describe(self) -> Mapping[str, object]:
        """See `MeasuringChild`."""
        said: Mapping[str, object] = ray.get(self._bench.describe.remote())
        return said

    def measure(self, plan: Plan, purpose: Purpose) -> Outcome:
        """See `MeasuringChild`."""
        try:
            outcome: Outcome = ray.get(self._bench.measure.remote(plan, purpose))
        except RayActorError:
            log.exception("the measuring device is lost; starting again")
            os._exit(1)
        return outcome

    def kill(self) -> None:
        """See `MeasuringChild`."""
        self._bench.kill.remote()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        ray.kill(self._bench)
