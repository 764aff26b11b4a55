"""The final figures: the optimised model saved, loaded in fresh processes, and timed there beside the original."""

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cmp_to_key
from pathlib import Path

import numpy as np

from model_opt.autotuner.engine import Found
from model_opt.autotuner.figures import Figure
from model_opt.autotuner.fresh_starts import (
    PATIENCE_S,
    STARTS,
    USUAL_DRIFT,
    USUAL_SPREAD,
    FreshFigures,
    Searched,
    time_fresh,
)
from model_opt.autotuner.pareto_points import ParetoPoint, pareto_points
from model_opt.compression.evaluation.evaluator import CompressionEvaluator, Task, kept_model
from model_opt.compression.inputs import Inputs
from model_opt.compression.save_model import save_model
from model_opt.errors import MeasurementFailed
from model_opt.measuring.measurer import Measurer
from model_opt.measuring.variables import ALLOCATOR
from model_opt.search.beliefs import Estimate
from model_opt.search.objective import Objective
from model_opt.search.plan import Plan
from model_opt.search.trial import GIVEN, Trial

SAVE_S = 900.0
BUSY = "not measured: other programs kept the machine busy"


@dataclass(frozen=True, kw_only=True)
class FinalAnswer:
    """The plan that is handed back, its figures, and its model as it is saved."""

    plan: Plan
    model: bytes = field(repr=False)
    figures: Mapping[str, Figure]
    feasible: bool
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class FreshRequest:
    """What is asked of the machine that measures once the search is over: `plan`'s model, timed in fresh processes.

    `original` is the model as it is, saved; `kept` the folder where an evaluator of that machine may have kept the
    plan's. `left_s` is the time for all of it in seconds, None: any. The rest is `time_fresh`'s.
    """

    plan: Plan
    original: bytes = field(repr=False)
    example: Inputs = field(repr=False)
    kept: Path | None
    threads: int
    searched: Searched
    search_s: float
    left_s: float | None
    wanted: int
    patience_s: float


def finish(
    measurer: Measurer,
    found: Found,
    objective: Objective,
    *,
    task: Task,
    threads: int,
    deadline: float | None,
    search_s: float,
    on_plan: Callable[[Plan], None],
) -> FinalAnswer:
    """Has the best plan's model saved and timed in fresh processes.

    A plan whose model cannot be saved, loaded or run there is passed over for the next best, the reason among the
    notes; the original is always the last. `search_s` is how long the search took. `on_plan` is
    told which plan it is.
    """
    notes: list[str] = []
    original = _saved(task)
    for plan in _candidates(found, objective):
        try:
            model, fresh = original, None
            if plan.choices:
                request = FreshRequest(
                    plan=plan,
                    original=original,
                    example=task.example,
                    kept=task.keep,
                    threads=threads,
                    searched=_searched(plan, found),
                    search_s=search_s,
                    left_s=None if deadline is None else max(deadline - time.monotonic(), 0.0),
                    wanted=STARTS,
                    patience_s=PATIENCE_S,
                )
                on_plan(plan)
                model, fresh = measurer.errand(model_and_timing, request)
            return _answer(plan, model, found, objective, fresh, notes)
        except MeasurementFailed as error:
            notes.append(f"{plan} was passed over: {error}")
    raise MeasurementFailed("; ".join(notes))


def _saved(task: Task) -> bytes:
    with tempfile.TemporaryDirectory(prefix="model-opt-") as folder:
        path = Path(folder) / "original.pt"
        save_model(task.model, path, recipe={})
        return path.read_bytes()


def model_and_timing(measurer: Measurer, request: FreshRequest) -> tuple[bytes, FreshFigures | None]:
    """The plan's model as it was measured, where it was kept, else made again; and its timing in fresh processes, None
    where there was no time. Raises `MeasurementFailed` where it cannot be made, loaded or run."""
    with tempfile.TemporaryDirectory(prefix="model-opt-") as folder:
        original, model = Path(folder) / "original.pt", Path(folder) / "model.pt"
        original.write_bytes(request.original)
        kept = None if request.kept is None else kept_model(request.kept, request.plan)
        if kept is not None and kept.exists():
            model.write_bytes(kept.read_bytes())
        else:
            measurer.call(CompressionEvaluator.save, request.plan, model, phase_deadline=SAVE_S)
        fresh = time_fresh(
            original,
            model,
            request.example,
            threads=request.threads,
            deadline=None if request.left_s is None else time.monotonic() + request.left_s,
            on_start=lambda number, of: measurer.tell(f"fresh process {number} of {of}"),
            searched=request.searched,
            search_s=request.search_s,
            wanted=request.wanted,
            patience_s=request.patience_s,
        )
        return model.read_bytes(), fresh


def _candidates(found: Found, objective: Objective) -> list[Plan]:
    """The recommended plan, then the two next best of those measured whole, then the original."""
    means = _means(found.observed)
    complete = [plan for plan in means if set(objective.metrics) <= means[plan].keys()]

    def order(a: Plan, b: Plan) -> int:
        return -1 if objective.better(means[a], means[b]) else 1

    ranked = sorted(complete, key=cmp_to_key(order))
    return list(dict.fromkeys([found.conclusion.best.plan, *ranked[:3], Plan()]))


def _means(observed: Iterable[Trial]) -> dict[Plan, Mapping[str, float]]:
    """The latest figures of each measured plan."""
    return {seen.plan: seen.metrics for seen in observed if seen.failure is None}


def _answer(
    plan: Plan, model: bytes, found: Found, objective: Objective, fresh: FreshFigures | None, notes: Sequence[str]
) -> FinalAnswer:
    seen = [o.metrics for o in found.observed if o.plan == plan and o.failure is None]
    metrics = seen[-1] if seen else dict.fromkeys(("log_speedup", "log_size_ratio", "accuracy_drop"), 0.0)
    drop, error = metrics["accuracy_drop"], metrics.get("accuracy_error", 0.0)
    figures = {
        "speedup": _speedup(plan, found, fresh),
        "compression_ratio": Figure.exact(math.exp(metrics["log_size_ratio"])),
        "accuracy_drop": _lost(drop, error),
    }
    if fresh:
        figures["latency_ms"] = fresh.latency_ms
        figures |= {name: figure for name, figure in fresh.others.items() if figure is not None}
    final = dict(metrics) | {"log_speedup": math.log(figures["speedup"].value)}
    told = objective.violation(final) == 0
    doubts = [*notes, *_doubts(plan, fresh, found, told)]
    return FinalAnswer(plan=plan, model=model, figures=figures, feasible=told, notes=tuple(doubts))


def _searched(plan: Plan, found: Found) -> Searched:
    """From the measurements of `plan` that nobody disturbed, where there are any."""
    seen = [o for o in found.observed if o.plan == plan and "log_speedup" in o.metrics]
    quiet = [o for o in seen if "log_speedup" not in o.disturbed]
    mean = float(np.mean([o.metrics["log_speedup"] for o in quiet or seen]))
    belief = found.conclusion.beliefs[plan]["log_speedup"]
    return Searched(mean=mean, figure=_faster(mean, belief), disturbed=not quiet)


def _speedup(plan: Plan, found: Found, fresh: FreshFigures | None) -> Figure:
    """The speed-up by fresh processes; where the machine was never quiet there, or they contradict the search, with an
    interval that covers what both saw."""
    if not plan.choices:
        return Figure.exact(1.0)
    searched = _searched(plan, found)
    if fresh is None:
        return replace(searched.figure, doubt=BUSY if searched.disturbed else "")
    if fresh.quiet and not searched.contradicts(fresh.logs):
        return fresh.speedup
    value = fresh.speedup.value if fresh.quiet or searched.disturbed else searched.figure.value
    doubt = "the search measured something else" if fresh.quiet else BUSY
    return Figure(
        value=value,
        low=min(fresh.speedup.low, searched.figure.low),
        high=max(fresh.speedup.high, searched.figure.high),
        doubt=doubt,
    )


def _faster(log_speedup: float, belief: Estimate) -> Figure:
    """The speed-up with an interval for a fresh process, where only this search's process has measured it."""
    half = 2 * math.hypot(belief.std, USUAL_SPREAD, math.sqrt(2) * USUAL_DRIFT)
    return Figure(value=math.exp(log_speedup), low=math.exp(log_speedup - half), high=math.exp(log_speedup + half))


def _lost(drop: float, error: float) -> Figure:
    """The accuracy lost with an interval for other data of the same kind; `error` is its standard error."""
    return Figure(value=drop, low=drop - 1.96 * error, high=drop + 1.96 * error)


def _doubts(plan: Plan, fresh: FreshFigures | None, found: Found, feasible: bool) -> list[str]:
    notes = []
    if not feasible:
        notes.append("no measured plan keeps every constraint: this is the one that comes closest")
    tried = [seen for seen in found.observed if seen.purpose != GIVEN]
    if not tried:
        lost = int(found.fleet.get("expired", 0))
        died = (
            f": workers were lost {lost} times, as they are where memory is short" if lost else " in the time there was"
        )
        notes.append(f"no plan could be measured{died}")
    elif not found.conclusion.best.plan.choices and feasible:
        spoilt = sum("log_speedup" in seen.disturbed for seen in found.observed)
        busy = f"; but other programs disturbed the timing of {spoilt} of them: search again on a quiet machine"
        notes.append(
            f"nothing that was measured beats the model as it is under these constraints{busy if spoilt else ''}"
        )
    if plan.choices and fresh is None:
        notes.append("no time was left for fresh processes: the speed-up is the search's own measurement")
    if fresh and not fresh.quiet:
        notes.append(
            f"the speed-up was not measured: other programs used up to {fresh.busy or 0:.0%} of the processors all "
            "through the final timing. Its interval covers what the search and the fresh processes saw; time again on "
            "a quiet machine, or with fewer threads"
        )
    if fresh and fresh.quiet and (searched := _searched(plan, found)).contradicts(fresh.logs):
        notes.append(
            f"the search measured {math.exp(searched.mean):.2f}x, {len(fresh.logs)} fresh processes "
            f"{fresh.speedup.value:.2f}x: the interval covers both"
        )
    if fresh and (usual := fresh.others.get("speedup_usual_allocator")):
        notes.append(
            "both were timed with an allocator that keeps freed memory; a process without it, as yours usually is, "
            f"saw {usual.value:.2f}x ({' '.join(f'{k}={v}' for k, v in ALLOCATOR.items())} in its environment does it)"
        )
    return notes


def pareto_front(found: Found) -> tuple[ParetoPoint, ...]:
    """The Pareto front of what was measured and nobody disturbed, with intervals from what is believed after the last
    measurement."""
    means = _means([seen for seen in found.observed if not seen.disturbed])
    points = pareto_points(means)
    beliefs = found.conclusion.beliefs
    errors = {plan: metrics.get("accuracy_error", 0.0) for plan, metrics in means.items()}
    return tuple(
        replace(point, intervals=_intervals(point, beliefs.get(point.plan, {}), errors[point.plan])) for point in points
    )


def _intervals(point: ParetoPoint, belief: Mapping[str, Estimate], error: float) -> dict[str, tuple[float, float]]:
    if not point.plan.choices:
        return {}
    faster = _faster(math.log(point.speedup), belief["log_speedup"])
    lost = _lost(point.accuracy_drop, error)
    return {"speedup": (faster.low, faster.high), "accuracy_drop": (lost.low, lost.high)}
