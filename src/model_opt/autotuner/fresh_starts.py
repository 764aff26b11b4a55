"""Saved models timed in fresh processes, as many as it takes to say how fast they are, or that nobody can say."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import numpy as np
from scipy.special import stdtrit

from model_opt.autotuner.figures import Figure
from model_opt.compression.evaluation.fresh import Comparison, FreshTiming
from model_opt.compression.inputs import Inputs
from model_opt.errors import MeasurementFailed
from model_opt.measuring.child import MeasuringChild
from model_opt.search.evaluator import Evaluator

STARTS = 4
FEWEST_STARTS = 2
MORE_STARTS = 3
"""Further starts where measurements contradict each other."""
AT_ONCE = 2
"""Processes that import at once."""
PATIENCE_S, START_S = 60.0, 15.0
"""How long a start waits for a quiet machine at most, and what it usually takes besides, in seconds."""
PATIENCE_SHARE, LEAST_PATIENCE_S = 0.25, 5.0
"""A start waits for no longer than this share of what the search took: nobody waits minutes for a search of seconds."""
USUAL_SPREAD, USUAL_DEGREES = 0.045, 3
"""Standard deviation of log speed-up between process starts on a machine that is not busy, and how much it counts."""
USUAL_DRIFT = 0.025
"""Standard deviation of log speed-up between one minute and another: what a machine's other tenants and its clock do to
two models unequally. All starts of a result share it; `benchmarks/intervals.py` shows whether it is enough."""
CONTRADICTION = 4.0
"""Standard deviations beyond which two measurements of one plan contradict each other."""


@dataclass(frozen=True, kw_only=True)
class Searched:
    """What the search measured of a plan's log speed-up: its mean, its interval for a fresh process as `figure`, and
    whether other programs disturbed all of it."""

    mean: float
    figure: Figure
    disturbed: bool

    def contradicts(self, logs: np.ndarray) -> bool:
        """Whether fresh processes that measured `logs`, `[starts]`, say something else beyond their noise."""
        spread = math.hypot(USUAL_SPREAD / math.sqrt(len(logs)), USUAL_SPREAD, math.sqrt(2) * USUAL_DRIFT)
        return not self.disturbed and abs(float(logs.mean()) - self.mean) > CONTRADICTION * spread


@dataclass(frozen=True, kw_only=True)
class FreshFigures:
    """Speed and memory over several process starts.

    `logs` are the log speed-ups that `speedup` is made of, `[starts]`; `quiet` says whether they were undisturbed.
    `others` are `peak_memory_ratio` and `speedup_usual_allocator`, each None where it is not known.
    """

    speedup: Figure
    latency_ms: Figure
    baseline_ms: float
    logs: np.ndarray
    quiet: bool
    busy: float | None
    others: Mapping[str, Figure | None]


def time_fresh(
    baseline: Path,
    plan: Path,
    example: Inputs,
    *,
    threads: int,
    deadline: float | None,
    on_start: Callable[[int, int], None],
    searched: Searched,
    search_s: float,
    wanted: int,
    patience_s: float,
) -> FreshFigures | None:
    """Compares the two saved models in `wanted` fresh processes, then in one more with the system's usual allocator.

    There are more where they contradict each other or the search, fewer where `deadline` (monotonic seconds) is near or
    the machine is never quiet. `search_s`, how long the search took, bounds how long they wait for that, `patience_s`
    at most.

    None where not even two fit in. Raises `MeasurementFailed` if a saved model does not load or run.
    """
    seen: list[Comparison] = []
    longest, enough = 0.0, wanted
    with FreshStarts(baseline, plan, example, threads, deadline) as starts:
        while len(seen) < wanted:
            started = time.monotonic()
            if deadline is not None and started + 1.2 * longest > deadline:
                break
            on_start(len(seen) + 1, wanted)
            made = starts.compare(min(patience_s, _patience_s(search_s, deadline, wanted - len(seen))))
            if made is None:
                break
            seen.append(made)
            longest = max(longest, time.monotonic() - started)
            if len(seen) == FEWEST_STARTS and not any(one.quiet for one in seen):
                break
            if len(seen) == enough and _contradictory(seen, searched):
                wanted = enough + MORE_STARTS
    if len(seen) < FEWEST_STARTS:
        return None
    usual = None
    if deadline is None or time.monotonic() + 1.2 * longest < deadline:
        with FreshStarts(baseline, plan, example, threads, deadline, allocator=False) as starts:
            usual = starts.compare(0.0)
    return _figures(seen, usual)


def _patience_s(search_s: float, deadline: float | None, starts: int) -> float:
    """How long one of `starts` starts may wait for a quiet machine, in seconds."""
    most_s = max(LEAST_PATIENCE_S, PATIENCE_SHARE * search_s)
    return most_s if deadline is None else max(0.0, min(most_s, (deadline - time.monotonic()) / starts - START_S))


def _contradictory(seen: Sequence[Comparison], searched: Searched) -> bool:
    """Whether the undisturbed starts disagree with one another, or with the search, beyond their noise."""
    logs = _quiet_logs(seen)
    return len(logs) > 0 and (float(np.ptp(logs)) > 2 * CONTRADICTION * USUAL_SPREAD or searched.contradicts(logs))


def _quiet_logs(seen: Sequence[Comparison]) -> np.ndarray:
    return np.array([one.log_speedup for one in seen if one.quiet])


class FreshStarts:
    """Fresh processes, one a comparison: it loads both saved models, every other one the plan's first, and times both.

    Two at a time import what they need, side by side, before the first of them times. `allocator` keeps freed memory in
    them, as in measuring processes; without it they start as any other process would.
    """

    def __init__(
        self,
        baseline: Path,
        plan: Path,
        example: Inputs,
        threads: int,
        deadline: float | None,
        *,
        allocator: bool = True,
    ) -> None:
        self._make = partial(FreshTiming, baseline, plan, example, threads=threads)
        self._deadline, self._allocator = deadline, allocator
        self._ready: list[MeasuringChild] = []
        self._many = 0

    def compare(self, patience_s: float) -> Comparison | None:
        """What the next process finds; None where the deadline ended it. Raises `MeasurementFailed`."""
        try:
            if not self._ready:
                self._start(AT_ONCE if self._allocator else 1)
            with self._ready.pop(0) as child:
                return child.call(FreshTiming.compare, patience_s, phase="time", phase_deadline=300.0 + patience_s)
        except MeasurementFailed:
            if self._deadline is not None and time.monotonic() >= self._deadline:
                return None
            raise

    def _start(self, many: int) -> None:
        for _ in range(many):
            # A function of this module would make the process import all of it.
            factory = cast(Callable[[], Evaluator], partial(self._make, plan_first=self._many % 2 == 0))
            child = MeasuringChild(factory, deadline=self._deadline, allocator=self._allocator, forked=False)
            self._ready.append(child)
            self._many += 1
        with ThreadPoolExecutor(many) as beside:
            for told in [beside.submit(child.describe) for child in self._ready]:
                told.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        while self._ready:
            self._ready.pop().close()


def _figures(seen: Sequence[Comparison], usual: Comparison | None) -> FreshFigures:
    """From the undisturbed starts if there are enough, else from all."""
    quiet = [one for one in seen if one.quiet]
    enough = len(quiet) >= FEWEST_STARTS
    used = quiet if enough else seen
    logs = np.array([one.log_speedup for one in used])
    peaks = [[one.peak_bytes for one in seen[first::2]] for first in (0, 1)]
    there = usual is not None and (usual.quiet or not enough)
    return FreshFigures(
        speedup=prediction(logs),
        latency_ms=prediction(np.log([one.plan_ms for one in used])),
        baseline_ms=float(np.median([one.baseline_ms for one in used])),
        logs=logs,
        quiet=enough,
        busy=max((one.busy for one in seen if one.busy is not None), default=None),
        others={
            "peak_memory_ratio": _memory_ratio(*peaks),
            "speedup_usual_allocator": prediction(np.array([usual.log_speedup])) if usual and there else None,
        },
    )


def prediction(logs: np.ndarray) -> Figure:
    """The exponential of the mean of `logs`, `[starts]`, with the 95 % interval for one more start at another time.

    Student's t; the variance is that of the starts with `USUAL_SPREAD` as `USUAL_DEGREES` further degrees of freedom
    (a scaled inverse chi-squared prior: Gelman et al., Bayesian Data Analysis, section 3.3), since two or three starts
    that happen to agree, or not, say little by themselves. `USUAL_DRIFT` comes twice, undivided: there are two times.
    """
    n = len(logs)
    degrees = USUAL_DEGREES + n - 1
    variance = (USUAL_DEGREES * USUAL_SPREAD**2 + float(((logs - logs.mean()) ** 2).sum())) / degrees
    spread = math.sqrt(variance * (1 + 1 / n) + 2 * USUAL_DRIFT**2)
    mean, half = float(np.mean(logs)), float(stdtrit(degrees, 0.975)) * spread
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
