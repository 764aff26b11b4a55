"""One search as the report and the live page see it: a result folder, one that is being written, or a fleet's state."""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from model_opt.autotuner.constraints import Constraints
from model_opt.autotuner.figures import figure_text, versus
from model_opt.autotuner.folder import PROGRESS_FILE, folders
from model_opt.autotuner.progress_log import read_progress
from model_opt.autotuner.result import CompressionResult
from model_opt.autotuner.tally import Tally, of_tried
from model_opt.errors import InvalidInput
from model_opt.fleet import submission
from model_opt.fleet.concluding import read_wanted, with_conclusion
from model_opt.fleet.coordinator_service import STATE_FILE
from model_opt.fleet.journal import look
from model_opt.metrics import plain
from model_opt.search.conclusion import of_one_context
from model_opt.search.objective import Objective
from model_opt.search.plan import Plan
from model_opt.search.trial import Trial

QUIET_S = 600.0
"""A fleet that has written nothing for so long is not taken to be running."""


@dataclass(frozen=True, kw_only=True)
class View:
    """A search. `state` is "running", "ended (why)" or "interrupted"; `where` "this machine" or "fleet".

    `objective` is the metric that is made small or, with `maximize`, large. `result` is there once there is one;
    `importance` is empty where it is unknown, `limits` None.
    """

    name: str
    state: str
    where: str
    budget: int
    settled: int
    observations: tuple[Trial, ...]
    constraints: Mapping[str, float] = field(default_factory=dict)
    objective: str = "log_speedup"
    maximize: bool = True
    limits: Objective | None = None
    chosen: Plan | None = None
    phase: str = ""
    importance: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    result: CompressionResult | None = None
    status: Mapping[str, Any] = field(default_factory=dict)

    @property
    def running(self) -> bool:
        """Whether more is to come."""
        return self.state == "running"

    @property
    def compresses(self) -> bool:
        """Whether the figures are those of a compression: speed-up, size and accuracy."""
        wanted = {"log_speedup", "accuracy_drop"}
        return any(wanted <= seen.metrics.keys() for seen in self.observations)

    def reward(self, seen: Trial) -> float | None:
        """What is wanted of a plan, as people read it (times faster; else the metric); None where it is missing."""
        value = seen.metrics.get(self.objective)
        if value is None or not math.isfinite(value):
            return None
        return plain(self.objective, value)[1]

    def feasible(self, seen: Trial) -> bool:
        """Whether the measured means keep every constraint."""
        if seen.failure is not None:
            return False
        return self.limits is None or self.limits.violation(seen.metrics) == 0

    def best(self) -> Trial | None:
        """The best measured plan that keeps the constraints."""
        kept = [seen for seen in self.observations if self.feasible(seen) and self.reward(seen) is not None]
        sign = 1.0 if self.maximize else -1.0
        return max(kept, key=lambda seen: sign * (self.reward(seen) or 0.0), default=None)

    def said(self, value: float) -> str:
        """A reward in words: "5.10x" of a speed-up, else the number."""
        return versus(value, "slower") if self.objective == "log_speedup" else f"{value:.4g}"

    def headline(self) -> str:
        """What the search has come to, wherever it is named: the result's figure, else that of the best plan."""
        if self.result is not None:
            return figure_text(self.result.figures["speedup"])
        best = self.best()
        value = None if best is None else self.reward(best)
        return "" if value is None else self.said(value)

    def count(self) -> str:
        """How far it is while it runs, and what became of its plans afterwards."""
        if self.running:
            return f"{self.settled} of {self.budget} settled"
        if not self.observations and "settled" in self.status:
            return str(Tally.of_status(self.status))
        return str(Tally.of(self.observations))


def _limits(bounds: Mapping[str, float], baseline: Mapping[str, float]) -> Objective:
    """The constraints as the search had them. Raises `InvalidInput` for what was written by nobody of ours."""
    try:
        return Constraints.read(bounds).objective(baseline)
    except KeyError as error:
        raise InvalidInput(f"the baseline's figures lack {error}") from error


def of_result(result: CompressionResult, name: str) -> View:
    """A finished optimisation."""
    return View(
        name=name,
        state="interrupted" if result.ended == "interrupted" else f"ended ({result.ended})",
        where="fleet" if result.fleet else "this machine",
        budget=int(result.fleet.get("budget", len(result.measured))),
        settled=len(result.measured),
        observations=result.observations,
        constraints=result.constraints,
        limits=_limits(result.constraints, result.baseline),
        chosen=result.plan,
        importance=result.importance,
        notes=result.notes,
        result=result,
        status=result.fleet,
    )


def of_progress(folder: Path, name: str) -> View:
    """An optimisation that is running, or ended without a result."""
    seen = read_progress(folder)
    bounds = {key: value for key, value in seen.facts.get("constraints", {}).items() if value is not None}
    baseline = seen.facts.get("baseline")
    return View(
        name=name,
        state="running" if seen.running else "interrupted",
        where="fleet" if seen.status else "this machine",
        budget=int(seen.facts["budget"]),
        settled=seen.settled,
        observations=seen.observations,
        constraints=bounds,
        limits=_limits(bounds, baseline) if baseline else None,
        chosen=seen.best,
        phase=seen.phase,
        notes=seen.notes,
        status=seen.status,
    )


def of_fleet(folder: Path) -> View:
    """A search in the head node's state folder, running or not.

    Raises `InvalidInput` where there is no search, `StoreCorrupt` where it cannot be read.
    """
    if not submission.is_complete(folder):
        raise InvalidInput(f"{folder} holds no search")
    kept, facts = look(folder / STATE_FILE)
    objective, budget = read_wanted(facts)
    settled, importance = with_conclusion(of_one_context(one.trial for one in kept), facts)
    ratio = objective.metric == "latency_ms" and any("log_speedup" in trial.metrics for trial in settled)
    view = View(
        name=folder.name,
        state=_state(folder, facts),
        where="fleet",
        budget=budget,
        settled=len(settled),
        observations=_since_the_start(settled, facts),
        constraints={limit.metric: limit.bound for limit in objective.limits},
        objective="log_speedup" if ratio else objective.metric,
        maximize=True if ratio else objective.maximize,
        limits=objective,
        importance=of_tried(importance, settled),
        status={"measured_by": dict(Counter(trial.worker for trial in settled))},
    )
    best = view.best()
    return replace(view, chosen=best.plan if best else None)


def _state(folder: Path, facts: Mapping[str, object]) -> str:
    """A search without an ending runs if its file was written to lately; else it waits to be resumed."""
    if (ending := facts.get("ending")) is not None:
        return f"ended ({ending})"
    written = max(path.stat().st_mtime for path in folder.glob(f"{STATE_FILE}*"))
    return "running" if time.time() - written < QUIET_S else "interrupted"


def _since_the_start(settled: Sequence[Trial], facts: Mapping[str, object]) -> tuple[Trial, ...]:
    began = float(str(facts.get("first_grant_s") or (settled[0].at_s if settled else 0.0)))
    return tuple(replace(trial, at_s=trial.at_s - began) for trial in settled)


def of_folder(folder: Path, name: str) -> View:
    """A result folder: what is being written if something is, else the result. Raises `InvalidInput`."""
    if (folder / PROGRESS_FILE).is_file():
        return of_progress(folder, name)
    return of_result(CompressionResult.load(folder), name)


def find(text: str, state: str | None) -> View:
    """The search that `text` names: a result folder, its result.json, or a fleet's search in the folder `state`.

    Raises `InvalidInput`, which says where was looked.
    """
    path = Path(text)
    if path.is_file():
        return of_result(CompressionResult.load(path), path.resolve().parent.name)
    if path.is_dir() and folders([path])[:1] == [path]:
        return of_folder(path, path.resolve().name)
    root = submission.state_root(state)
    if submission.is_complete(root / text):
        return of_fleet(root / text)
    kept = ", ".join(sorted(p.name for p in root.glob("*/") if submission.is_complete(p))) or "none"
    raise InvalidInput(
        f"{text!r} is no result: neither a folder that model-opt optimize … --output has written nor a search kept in "
        f"{root} (kept: {kept})"
    )
