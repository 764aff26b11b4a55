"""Measuring on a device of the cluster for a process elsewhere: an actor that holds the measuring process."""

import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from model_opt.actors.cluster import answer
from model_opt.actors.ray_link import RayLink, child_of
from model_opt.errors import FleetError, MeasurementFailed
from model_opt.fleet.submission import Placement, pickled
from model_opt.fleet.worker_slots import Slot, nodes_of, worker_slots
from model_opt.measuring.child import MeasuringChild
from model_opt.measuring.variables import worker_variables
from model_opt.search.evaluator import Description, Evaluator, Outcome, Phase, Purpose
from model_opt.search.plan import Plan

log = logging.getLogger(__name__)

T = TypeVar("T")

POLL_S = 0.5
PATIENCE_S = 10.0
"""How long nobody is told that every slot of the cluster is taken."""
TRIES = 3
"""How often what was asked of a lost device is asked of another one."""


class MeasuringActor:
    """A Ray actor: a measuring process and the way to it. It ends with the process that started it.

    `left_s` is the time that a call has, in seconds; None: any.
    """

    def __init__(self, make: Callable[[], MeasuringChild]) -> None:
        self._child, self._phase = make(), ""
        self._child.on_phase = self._enter

    def _enter(self, name: str) -> None:
        self._phase = name

    def describe(self, left_s: float | None) -> Description:
        """See `Measurer`; with the node that it measures on."""
        said = self._timed(left_s).describe()
        return replace(said, more={**said.more, "measured_on": ray.get_runtime_context().get_node_id()})

    def measure(self, left_s: float | None, plan: Plan, purpose: Purpose) -> Outcome:
        """See `Measurer`."""
        return self._timed(left_s).measure(plan, purpose)

    def call(
        self, left_s: float | None, function: Callable[..., T], arguments: tuple[Any, ...], options: Mapping[str, Any]
    ) -> T:
        """See `Measurer`."""
        return self._timed(left_s).call(function, *arguments, **options)

    def errand(self, left_s: float | None, function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
        """See `Measurer`."""
        return function(self._timed(left_s), *arguments)

    def phase(self) -> str:
        """What the measuring process is doing."""
        return self._phase

    def kill(self) -> None:
        """See `Measurer`."""
        self._child.kill()

    def _timed(self, left_s: float | None) -> MeasuringChild:
        self._child.deadline = None if left_s is None else time.monotonic() + left_s
        return self._child


class ClusterMeasurer:
    """A `Measurer` behind a `MeasuringActor`, which is started on first use with the Ray options `options`.

    What is asked of a device that is lost is asked again of another; `on_lost` is called first. Raises `FleetError`
    where none can be had.
    """

    def __init__(
        self,
        make: Callable[[], MeasuringChild],
        options: Mapping[str, Any],
        *,
        on_phase: Phase | None = None,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self._make, self._options, self._on_phase, self._on_lost = make, options, on_phase, on_lost
        self._actor: Any = None
        self.deadline: float | None = None

    def describe(self) -> Description:
        """See `Measurer`."""
        said: Description = self._ask("describe")
        return said

    def measure(self, plan: Plan, purpose: Purpose) -> Outcome:
        """See `Measurer`."""
        outcome: Outcome = self._ask("measure", plan, purpose)
        return outcome

    def call(
        self, function: Callable[..., T], *arguments: Any, phase: str = "save", phase_deadline: float | None = None
    ) -> T:
        """See `Measurer`."""
        value: T = self._ask("call", function, arguments, {"phase": phase, "phase_deadline": phase_deadline})
        return value

    def errand(self, function: Callable[..., T], *arguments: Any) -> T:
        """See `Measurer`."""
        value: T = self._ask("errand", function, arguments)
        return value

    def tell(self, phase: str) -> None:
        """See `Measurer`."""
        if self._on_phase is not None:
            self._on_phase(phase)

    def kill(self) -> None:
        """See `Measurer`."""
        if self._actor is not None:
            self._actor.kill.remote()

    def rest(self) -> None:
        """See `Measurer`; others may have its slot meanwhile."""
        if self._actor is not None:
            ray.kill(self._actor)
            self._actor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.rest()

    def _ask(self, method: str, *arguments: Any) -> Any:
        for _ in range(TRIES):
            if self._actor is None:
                self._actor = ray.remote(MeasuringActor).options(**self._options).remote(self._make)
            left_s = None if self.deadline is None else max(self.deadline - time.monotonic(), 0.0)
            reference = getattr(self._actor, method).remote(left_s, *arguments)
            try:
                self._follow(reference)
                return answer(reference)
            except FleetError as error:
                if not isinstance(error.__cause__, RayActorError):
                    raise
                log.warning("the measuring device is lost: %s", error)
                self._on_lost()
                self._actor = None
        raise FleetError(f"{TRIES} devices of the cluster were lost, one after the other, while they measured")

    def _follow(self, reference: Any) -> None:
        """Waits for an answer, and tells what is done meanwhile. Raises `MeasurementFailed` where the time is up."""
        began, told = time.monotonic(), ""
        while not ray.wait([reference], timeout=POLL_S)[0]:
            try:
                phase = ray.get(self._actor.phase.remote(), timeout=POLL_S) if self._on_phase else ""
            except GetTimeoutError:  # it is not there yet
                phase = "slot" if time.monotonic() - began > PATIENCE_S else ""
                if phase and self.deadline is not None and time.monotonic() > self.deadline:
                    self.rest()
                    raise MeasurementFailed("no slot of the cluster was free in the time there was") from None
            if phase and phase != told:
                told = phase
                self.tell(phase)


def slot_options(slot: Slot) -> dict[str, Any]:
    """Ray's options of an actor that measures in `slot`."""
    here = NodeAffinitySchedulingStrategy(slot.node_id, soft=False)
    return {"num_cpus": slot.cpus, "num_gpus": slot.gpus, "max_concurrency": 3, "scheduling_strategy": here}


def child_of_search(search: str) -> MeasuringChild:
    """The measuring process of a search that runs."""
    link = RayLink(search)
    return child_of(link, link.register())


def measurer_on_cluster(
    factory: Callable[[], Evaluator], placement: Placement, *, on_phase: Phase | None = None
) -> ClusterMeasurer:
    """Measures in any slot of the cluster that this process is connected to, before a search has workers there and
    after it. Raises `FleetError` where no node of it fits."""
    nodes: Any = ray.nodes()  # type: ignore[no-untyped-call]
    slots = worker_slots(nodes_of(nodes), replace(placement, workers=None))
    if not slots:
        raise FleetError(f"no node of the cluster fits {placement}")
    options: dict[str, Any] = {"num_cpus": slots[0].cpus, "num_gpus": slots[0].gpus, "max_concurrency": 3}
    if placement.labels:
        options["label_selector"] = dict(placement.labels)
    with tempfile.TemporaryDirectory(prefix="model-opt-") as folder:
        path, _ = pickled(factory, Path(folder))
        kept = ray.put(path.read_bytes())
    return ClusterMeasurer(partial(_child_of, [kept], dict(placement.env)), options, on_phase=on_phase)


def _child_of(kept: list[Any], env: Mapping[str, str]) -> MeasuringChild:
    """The measuring process of a factory whose pickle lies in Ray's object store."""
    handle, path = tempfile.mkstemp(prefix="model-opt-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(ray.get(kept[0]))
        return MeasuringChild(Path(path), env=worker_variables(env))
    finally:
        Path(path).unlink()  # it stays open
