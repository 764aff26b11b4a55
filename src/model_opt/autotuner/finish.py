"""The final figures: the optimised model saved, loaded in fresh processes, and timed there beside the original."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cmp_to_key, partial
from pathlib import Path
from typing import cast

import numpy as np
from scipy import stats

from model_opt.actors.child import MeasuringChild
from model_opt.autotuner.callbacks import Callbacks
from model_opt.autotuner.engine import Found
from model_opt.autotuner.result import Figure, ParetoPoint, pareto_points
from model_opt.compression.evaluate import Task, kept_model
from model_opt.compression.fresh import Comparison, FreshTiming
from model_opt.compression.inputs import Inputs
from model_opt.compression.shipping import save_model
from model_opt.errors import MeasurementFailed
from model_opt.search.beliefs import Estimate
from model_opt.search.evaluator import Evaluator
from model_opt.search.objective import Objective
from model_opt.search.plan import Plan

STARTS = 4
FEWEST_STARTS = 2
SAVE_S = 900.0
USUAL_SPREAD, USUAL_DEGREES = 0.07, 3
"""Standard deviation of log speed-up between process starts on a machine that is not busy, and how much it counts."""
USUAL_DRIFT = 0.06
"""Standard deviation of log speed-up between one minute and another: what a machine's other tenants and its clock do to
two models unequally. All starts of a result share it; `benchmarks/intervals.py` shows whether it is enough."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The plan that is handed back, its figures, and where its model lies."""

    plan: Plan
    model: Path
    figures: Mapping[str, Figure]
    feasible: bool
    notes: tuple[str, ...]


def conclude(
    child: MeasuringChild,
    found: Found,
    objective: Objective,
    scratch: Path,
    *,
    task: Task,
    deadline: float | None,
    callbacks: Callbacks,
) -> Answer:
    """Saves the best plan's model in `scratch` and measures it in fresh processes.

    A plan whose model cannot be saved, loaded or run there is passed over for the next best, the reason among the
    notes; the original is always the last.
    """
    notes: list[str] = []
    original = scratch / "original.pt"
    save_model(task.model, original, recipe={})
    for plan in _candidates(found, objective):
        try:
            model = original
            if plan.choices:
                model = _model_of(plan, child, scratch)
            fresh = None
            if plan.choices:
                fresh = time_fresh(
                    original,
                    model,
                    task.example,
                    threads=task.threads,
                    deadline=deadline,
                    on_start=_announce(callbacks, plan),
                )
            return _answer(plan, model, found, objective, fresh, notes)
        except MeasurementFailed as error:
            notes.append(f"{plan} was passed over: {error}")
    raise MeasurementFailed("; ".join(notes))


def _announce(callbacks: Callbacks, plan: Plan) -> Callable[[int, int], None]:
    return lambda number, of: callbacks.on_phase(f"fresh process {number} of {of}", plan)


def _model_of(plan: Plan, child: MeasuringChild, scratch: Path) -> Path:
    """The model that was measured, where it was kept; else it is made again."""
    path = kept_model(scratch, plan)
    if not path.exists():
        child.call("save", plan, path, phase_deadline=SAVE_S)
    return path


def _candidates(found: Found, objective: Objective) -> list[Plan]:
    """The recommended plan, then the two next best of those measured whole, then the original."""
    means = _means(found)
    complete = [plan for plan in means if set(objective.metrics) <= means[plan].keys()]

    def order(a: Plan, b: Plan) -> int:
        return -1 if objective.better(means[a], means[b]) else 1

    ranked = sorted(complete, key=cmp_to_key(order))
    return list(dict.fromkeys([found.best.plan, *ranked[:3], Plan()]))


def _means(found: Found) -> dict[Plan, Mapping[str, float]]:
    """The latest figures of each measured plan."""
    return {seen.plan: seen.metrics for seen in found.observed if seen.failure is None}


def _answer(
    plan: Plan, model: Path, found: Found, objective: Objective, fresh: "FreshFigures | None", notes: Sequence[str]
) -> Answer:
    seen = [o.metrics for o in found.observed if o.plan == plan and o.failure is None]
    metrics = seen[-1] if seen else dict.fromkeys(("log_speedup", "log_size_ratio", "accuracy_drop"), 0.0)
    drop, error = metrics["accuracy_drop"], metrics.get("accuracy_error", 0.0)
    figures = {
        "speedup": fresh.speedup if fresh else _in_process(plan, found, metrics),
        "compression_ratio": Figure.exact(math.exp(metrics["log_size_ratio"])),
        "accuracy_drop": _lost(drop, error),
    }
    if fresh:
        figures["latency_ms"] = fresh.latency_ms
        if fresh.peak_memory_ratio:
            figures["peak_memory_ratio"] = fresh.peak_memory_ratio
    final = dict(metrics) | {"log_speedup": math.log(figures["speedup"].value)}
    told = objective.violation(final) == 0
    doubts = [*notes, *_doubts(plan, fresh, found, told)]
    return Answer(plan=plan, model=model, figures=figures, feasible=told, notes=tuple(doubts))


def _in_process(plan: Plan, found: Found, metrics: Mapping[str, float]) -> Figure:
    """The speed-up as the search saw it, where no fresh process could be afforded."""
    if not plan.choices:
        return Figure.exact(1.0)
    return _faster(metrics["log_speedup"], found.searcher.predict([plan])[0]["log_speedup"])


def _faster(log_speedup: float, belief: Estimate) -> Figure:
    """The speed-up with an interval for a fresh process, where only this search's process has measured it."""
    half = 2 * math.hypot(belief.std, USUAL_SPREAD, math.sqrt(2) * USUAL_DRIFT)
    return Figure(value=math.exp(log_speedup), low=math.exp(log_speedup - half), high=math.exp(log_speedup + half))


def _lost(drop: float, error: float) -> Figure:
    """The accuracy lost with an interval for other data of the same kind; `error` is its standard error."""
    return Figure(value=drop, low=drop - 1.96 * error, high=drop + 1.96 * error)


def _doubts(plan: Plan, fresh: "FreshFigures | None", found: Found, feasible: bool) -> list[str]:
    notes = []
    if not feasible:
        notes.append("no measured plan keeps every constraint: this is the one that comes closest")
    if not found.best.plan.choices and feasible:
        notes.append("nothing that was measured beats the model as it is under these constraints")
    if plan.choices and fresh is None:
        notes.append("no time was left for fresh processes: the speed-up is the search's own measurement")
    if fresh and fresh.busy is not None and fresh.busy > 0.1:
        notes.append(
            f"the machine was busy: other programs used up to {fresh.busy:.0%} of it during the final timing. Threads "
            "that wait for a processor slow the two models unequally: the speed-up and its interval are those of a "
            "machine as busy as this; time again on a quiet one, or with fewer threads"
        )
    if plan.choices:
        notes.append("timed with an allocator that keeps freed memory, for the original and the optimised model alike")
    return notes


def front(found: Found) -> tuple[ParetoPoint, ...]:
    """The Pareto front of what was measured, with intervals from what is believed after the last measurement."""
    means = _means(found)
    points = pareto_points(means)
    beliefs = found.searcher.predict([point.plan for point in points])
    return tuple(
        replace(point, intervals=_intervals(point, belief, means[point.plan].get("accuracy_error", 0.0)))
        for point, belief in zip(points, beliefs, strict=True)
    )


def _intervals(point: ParetoPoint, belief: Mapping[str, Estimate], error: float) -> dict[str, tuple[float, float]]:
    if not point.plan.choices:
        return {}
    faster = _faster(math.log(point.speedup), belief["log_speedup"])
    lost = _lost(point.accuracy_drop, error)
    return {"speedup": (faster.low, faster.high), "accuracy_drop": (lost.low, lost.high)}


@dataclass(frozen=True, kw_only=True)
class FreshFigures:
    """Speed and memory over several process starts."""

    speedup: Figure
    latency_ms: Figure
    baseline_ms: float
    peak_memory_ratio: Figure | None
    starts: int
    busy: float | None


def time_fresh(
    baseline: Path,
    plan: Path,
    example: Inputs,
    *,
    threads: int,
    deadline: float | None,
    on_start: Callable[[int, int], None],
) -> FreshFigures | None:
    """Compares the two saved models in `STARTS` fresh processes, fewer where `deadline` (monotonic seconds) is near.

    None where not even two fit in. Raises `MeasurementFailed` if a saved model does not load or run.
    """
    seen: list[Comparison] = []
    longest = 0.0
    for number in range(STARTS):
        started = time.monotonic()
        if deadline is not None and started + 1.2 * longest > deadline:
            break
        on_start(number + 1, STARTS)
        try:
            seen.append(one_start(baseline, plan, example, threads, number % 2 == 0, deadline))
        except MeasurementFailed:
            if deadline is not None and time.monotonic() >= deadline:
                break
            raise
        longest = max(longest, time.monotonic() - started)
    return _figures(seen) if len(seen) >= FEWEST_STARTS else None


def one_start(
    baseline: Path, plan: Path, example: Inputs, threads: int, plan_first: bool, deadline: float | None
) -> Comparison:
    """One fresh process: loads both saved models, the plan's first if `plan_first`, and times them in turn."""
    # A function of this module would make the process import all of it.
    factory = partial(FreshTiming, baseline, plan, example, threads=threads, plan_first=plan_first)
    with MeasuringChild(cast(Callable[[], Evaluator], factory), deadline=deadline) as child:
        made: Comparison = child.call("compare", phase="time", phase_deadline=300.0)
        return made


def _figures(seen: Sequence[Comparison]) -> FreshFigures:
    ratios = np.array([one.log_speedup for one in seen])
    plan_ms = np.log([one.plan_ms for one in seen])
    peaks = [[one.peak_bytes for one in seen[first::2]] for first in (0, 1)]
    busy = [one.busy for one in seen if one.busy is not None]
    return FreshFigures(
        speedup=prediction(ratios),
        latency_ms=prediction(plan_ms),
        baseline_ms=float(np.median([one.baseline_ms for one in seen])),
        peak_memory_ratio=_memory_ratio(*peaks),
        starts=len(seen),
        busy=max(busy, default=None),
    )


def prediction(logs: np.ndarray) -> Figure:
    """The exponential of the mean of `logs`, `[starts]`, with the 95 % interval for one more start at another time.

    Student's t; the variance is that of the starts with `USUAL_SPREAD` as `USUAL_DEGREES` further degrees of freedom
    (a scaled inverse chi-squared prior: Gelman et al., Bayesian Data Analysis, section 3.3), since two or three starts
    that happen to agree, or not, say little by themselves. `USUAL_DRIFT` comes twice, for then and for now, undivided.
    """
    n = len(logs)
    degrees = USUAL_DEGREES + n - 1
    variance = (USUAL_DEGREES * USUAL_SPREAD**2 + float(((logs - logs.mean()) ** 2).sum())) / degrees
    spread = math.sqrt(variance * (1 + 1 / n) + 2 * USUAL_DRIFT**2)
    mean, half = float(np.mean(logs)), float(stats.t.ppf(0.975, degrees)) * spread
    return Figure(value=math.exp(mean), low=math.exp(mean - half), high=math.exp(mean + half))


def _memory_ratio(plan: Sequence[int | None], baseline: Sequence[int | None]) -> Figure | None:
    """Peak memory of the original ÷ of the optimised model, from the starts in which each was loaded first."""
    ours, theirs = [p for p in plan if p], [p for p in baseline if p]
    if not ours or not theirs:
        return None
    return Figure(
        value=float(np.mean(theirs) / np.mean(ours)),
        low=min(theirs) / max(ours),
        high=max(theirs) / min(ours),
    )
