"""The same search on a Ray cluster: a worker per slot measures, a coordinator merges what they learn."""

import hashlib
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from model_opt.actors import searches
from model_opt.actors.cluster import connect, disconnect
from model_opt.actors.searches import FleetResult, local_cpus
from model_opt.autotuner.engine import Found, Problem, first_plans, prior_of, trial_of
from model_opt.compression.evaluation.evaluator import Task
from model_opt.compression.evaluator_factory import evaluator_factory
from model_opt.errors import FleetError
from model_opt.federation.recorder import KEPT, WHOLE_ONLY, deployment_origin
from model_opt.fleet.proposer import Search
from model_opt.fleet.submission import Placement, Sharing
from model_opt.measuring.measurer import Measurer
from model_opt.processors import usable_memory, usable_processors
from model_opt.search.evaluator import Phase
from model_opt.search.plan import Plan
from model_opt.search.trial import GIVEN, Trial
from model_opt.storage.open import is_local

LOCAL = "local"
CLUSTER_BYTES, WORKER_BYTES = int(1.2 * 2**30), int(0.6 * 2**30)
"""What Ray and the driver take at the least, and each worker with its measuring process, for a small model."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where to search. `address` is that of a Ray cluster ("auto"), or "local" for one on this machine.

    `workers` is None for one a slot. `name` is what the search can be found by; `state` the head node's folder for it.
    `store` is the URL or path of the knowledge store, which the coordinator writes to; None: the driver does.
    After `patience` settlements without a better plan no improvement is expected, and the search ends.

    Raises `FleetError` where this machine has no room for a cluster of its own.
    """

    address: str
    workers: int | None = None
    name: str | None = None
    state: str | None = None
    store: str | None = field(default=None, repr=False)
    patience: int | None = None

    @property
    def is_local(self) -> bool:
        """Whether it is a cluster on this machine."""
        return self.address == LOCAL

    def __post_init__(self) -> None:
        if self.is_local:
            _check_memory(self.workers or usable_processors())


class FleetEngine:
    """Runs a search on a cluster; `n_simulations` counts settled leases, failures included."""

    def __init__(self, n_simulations: int, cluster: Cluster, task: Task) -> None:
        self.n_simulations = n_simulations
        self._cluster, self._task = cluster, task

    def run(self, problem: Problem) -> Found:
        """Searches until the budget is settled or the time is up. A cluster that was started for this ends with it.

        Raises `FleetError` where the cluster cannot be reached or no worker can measure.
        """
        problem.measurer.rest()  # its memory and threads are the workers' now
        problem.callbacks.on_phase("workers", None)
        cluster = self._cluster
        address = None if cluster.is_local else cluster.address
        try:
            sharing = self._sharing(problem, address)
            found = searches.run_search(
                evaluator_factory(self._task),
                self._search(problem),
                name=cluster.name or f"search-{secrets.token_hex(4)}",
                simulations=self.n_simulations,
                address=address,
                state=cluster.state,
                timeout_s=_seconds_left(problem.explore_until),
                grace_s=problem.grace_s,
                patience=cluster.patience,
                whole_only=WHOLE_ONLY,
                gather=cluster.workers or 0,
                placement=_placement(cluster),
                sharing=sharing,
                subject=subject_of(self._task.model),
                on_progress=_Watcher(problem),
            )
            if sharing is not None:
                self._await_flush(found, address, problem)
        finally:
            if address is None:
                disconnect()
        if found.conclusion is None:
            raise FleetError(f"the search ended ({found.ending}) before anything was measured")
        if sharing is None:
            for outcome in (problem.original, *found.outcomes):
                problem.on_outcome(outcome)
        return Found(
            conclusion=found.conclusion,
            observed=(trial_of(problem.original, GIVEN), *_observed(found, taught=bool(problem.evidence))),
            ended=found.ending,
            fleet=_summary(found.status),
            remembered=sharing is not None,
        )

    def _sharing(self, problem: Problem, address: str | None) -> Sharing | None:
        """What the coordinator needs to write to the knowledge store itself; None where it cannot reach it."""
        store = self._cluster.store
        if store is None or (address is not None and is_local(store) and not searches.on_head(address)):
            return None
        return Sharing(store=store, signature=problem.signature, origin=deployment_origin(), metrics=KEPT)

    def _await_flush(self, found: FleetResult, address: str | None, problem: Problem) -> None:
        """The coordinator writes behind the search: what it has not written yet is waited for, and said."""
        added = f"{len(found.rows)} measured plans were added to the knowledge base"
        problem.callbacks.on_note(searches.flushed(found.name, address=address) or added)

    def _search(self, problem: Problem) -> Search:
        return Search(
            space=problem.space,
            objective=problem.objective,
            seed=problem.seed,
            noise=problem.noise,
            first=tuple(first_plans(problem)),
            given=(problem.original,),
            prior=prior_of(problem, self.n_simulations / (self._cluster.workers or 1)),
            evidence=tuple(problem.evidence),
            expected=problem.expected,
        )


def subject_of(model: nn.Module) -> str:
    """What tells a model from any other: blake2b-128 over its class and its tensors, as 32 hexadecimal digits."""
    digest = hashlib.blake2b(type(model).__qualname__.encode(), digest_size=16)
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def reach(cluster: Cluster) -> None:
    """Joins the cluster, or starts one on this machine; `FleetEngine.run` finds it there. Raises `FleetError`."""
    connect(None if cluster.is_local else cluster.address, cpus=local_cpus(_placement(cluster)))


def measurer_on(cluster: Cluster, task: Task, *, deadline: float | None, on_phase: Phase) -> Measurer:
    """Measures on a device of the cluster, which is joined. Raises `FleetError`."""
    reach(cluster)
    from model_opt.actors.cluster_measurer import measurer_on_cluster

    measurer = measurer_on_cluster(evaluator_factory(task), _placement(cluster), on_phase=on_phase)
    measurer.deadline = deadline
    return measurer


def _placement(cluster: Cluster) -> Placement:
    return Placement(workers=cluster.workers)


def _check_memory(workers: int) -> None:
    """Raises `FleetError` where so many workers on this machine would be killed for want of memory."""
    needed, usable = CLUSTER_BYTES + workers * WORKER_BYTES, usable_memory()
    if usable is not None and usable < needed:
        raise FleetError(
            f"a cluster of {workers} worker{'s' * (workers != 1)} on this machine takes {needed / 2**30:.1f} GiB of "
            f"memory at least, and this process may use {usable / 2**30:.1f}: take fewer workers, or `model-opt "
            "optimize`, which needs no cluster"
        )


def _seconds_left(until: float | None) -> float | None:
    return None if until is None else max(until - time.monotonic(), 1.0)


def _summary(status: Mapping[str, Any]) -> dict[str, Any]:
    """What a result keeps of a fleet: who measured how much, and what was merged."""
    kept = (
        "name",
        "budget",
        "settled",
        "measured_by",
        "rows",
        "duplicates",
        "extra",
        "failures",
        "busy_s",
        "term",
        "expired",
    )
    return {name: status[name] for name in kept if name in status}


class _Watcher:
    """Told the status twice a second: passes on what was settled, a plan at a time, and then the counts."""

    def __init__(self, problem: Problem) -> None:
        self._problem, self._began = problem, time.monotonic()
        self._settled = 0
        self._failing: Mapping[str, str] = {}
        self._means: dict[Plan, Mapping[str, float]] = {
            problem.original.plan: trial_of(problem.original, GIVEN).metrics
        }

    def __call__(self, status: Mapping[str, Any]) -> None:
        failing: Mapping[str, str] = status["cannot_begin"]
        for worker in failing.keys() - self._failing.keys():
            self._problem.callbacks.on_note(f"worker {worker} cannot begin, and tries again: {failing[worker]}")
        self._failing = failing
        if int(status["settled"]) <= self._settled:
            return
        for trial in searches.settled(str(status["name"]), self._settled):
            self._settled += 1
            self._tell(replace(trial, at_s=time.monotonic() - self._began), int(status["budget"]))
        self._problem.callbacks.on_merge(status)

    def _tell(self, trial: Trial, budget: int) -> None:
        if trial.measurement is not None:
            self._means[trial.plan] = trial.metrics
        best = min(self._means, key=lambda plan: self._problem.objective.order(self._means[plan]))
        kept = self._problem.objective.violation(self._means[best]) == 0
        self._problem.callbacks.on_measurement(trial, settled=self._settled, budget=budget, best=best if kept else None)


def _observed(found: FleetResult, *, taught: bool) -> tuple[Trial, ...]:
    """The trials in the order in which they were settled; times are from the first lease on. Of the first nothing was
    foretold, unless the search was `taught` by others: the original alone foretells nothing."""
    began = float(found.status["first_grant_s"] or 0.0)
    return tuple(
        replace(trial, at_s=trial.at_s - began, predicted=trial.predicted if taught or number else {})
        for number, trial in enumerate(found.trials)
    )
