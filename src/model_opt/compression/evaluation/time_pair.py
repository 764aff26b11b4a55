"""Timing two models against each other: in turn (A B A B …), warm, so that a drifting machine slows both alike."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from model_opt.compression.evaluation.other_programs import OtherPrograms, RunQueue
from model_opt.compression.inputs import Inputs, call, tensors

WARM_CALLS = 3
LONG_S = 0.5
"""Two calls that each take longer are warm enough."""
TURN_S = 0.008
"""One model's turn lasts about this long: far more than the clock's resolution, less than most disturbances."""
TURNS = 5
"""A block is the median of this many turns of each model, of fewer where one call is long."""
FEWEST_BLOCKS = 3
SETTLE_S = 0.02
"""A model whose call is shorter than this gets a rest and a call that is not timed before each turn."""
REST_S = 0.01
"""OpenMP's threads wait for their next work by spinning for about 5 ms, and would take the processors from the other
model's (measured with torch and OpenVINO: a call of 1.5 ms takes 2.0)."""
DISTURBED = 0.1
"""A turn is disturbed where threads waited for a processor for more than this share of it."""
ALONE = 0.01
"""Where others used less than this share of the processors, it was the model's own threads that waited for each
other: it has more of them than there are processors."""


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Timings of a plan beside its baseline, one value a block: `baseline_ms` and `plan_ms`, both `[blocks]`.

    `quiet` says that all of it was timed while nobody held this process up; where False there was no such time, and the
    figures are those of a busy machine. `busy` is the share of the processors that other programs took meanwhile, or
    None if unknown; `set_aside` the share of turns that others disturbed.
    """

    baseline_ms: np.ndarray
    plan_ms: np.ndarray
    busy: float | None
    quiet: bool = True
    set_aside: float = 0.0

    @property
    def log_ratios(self) -> np.ndarray:
        """log(baseline / plan) of each block, `[blocks]`."""
        return np.asarray(np.log(self.baseline_ms / self.plan_ms))

    @property
    def drift(self) -> float:
        """How far the baseline's second half is from its first, as a share of the first."""
        half = len(self.baseline_ms) // 2
        if not half:
            return 0.0
        return float(abs(np.median(self.baseline_ms[half:]) / np.median(self.baseline_ms[:half]) - 1))


def time_pair(
    baseline: nn.Module, plan: nn.Module, inputs: Inputs, *, blocks: int, at_most_s: float, patience_s: float = 0.0
) -> Paired:
    """Times both in turn for `blocks` blocks, or fewer (at least 3) once `at_most_s` seconds are spent.

    Turns in which threads waited for a processor that others had are set aside. Where too few are left after
    `at_most_s` it goes on for up to `patience_s` more seconds, with shorter turns, which fit between two of others'.
    """
    with torch.inference_mode(), RunQueue() as queue:
        warm = [_warmed(model, inputs) for model in (baseline, plan)]
        turns = _turns(sum(turn_s for _, turn_s in warm))
        sides = [
            _Side(model=m, calls=calls, settles=turn_s / calls < SETTLE_S)
            for m, (calls, turn_s) in zip((baseline, plan), warm, strict=True)
        ]
        others, started, taken = OtherPrograms(), time.perf_counter(), 0
        while True:
            for side in sides:
                side.take_turn(inputs, queue)
            taken += 1
            spent_s, quiet = time.perf_counter() - started, min(len(side.quiet_ms) for side in sides)
            if quiet >= blocks * turns or (spent_s >= at_most_s and quiet >= FEWEST_BLOCKS * turns):
                break
            if taken >= FEWEST_BLOCKS * turns and spent_s >= at_most_s + patience_s:
                break
            if taken % (FEWEST_BLOCKS * turns) == 0:
                for side in sides:
                    side.shorten_turns()
    return _paired(sides, turns, blocks, others.share())


def _paired(sides: "Sequence[_Side]", turns: int, most: int, busy: float | None) -> Paired:
    """The turns as up to `most` blocks: the quiet ones, if there are enough; all, if nobody else held them up; else the
    least disturbed."""
    alone = busy is not None and busy < ALONE
    quiet = alone or min(len(side.quiet_ms) for side in sides) >= FEWEST_BLOCKS
    if alone:
        times = [[ms for ms, _ in side.turns] for side in sides]
    elif quiet:
        times = [side.quiet_ms for side in sides]
    else:
        times = [side.least_disturbed(FEWEST_BLOCKS * turns) for side in sides]
    fewest = min(map(len, times))
    blocks = max(min(fewest, FEWEST_BLOCKS), min(most, fewest // turns))
    baseline_ms, plan_ms = ([float(np.median(part)) for part in np.array_split(one, blocks)] for one in times)
    aside = 1 - sum(len(side.quiet_ms) for side in sides) / sum(len(side.turns) for side in sides)
    return Paired(
        baseline_ms=np.array(baseline_ms),
        plan_ms=np.array(plan_ms),
        busy=busy,
        quiet=quiet,
        set_aside=0.0 if alone else aside,
    )


@dataclass(kw_only=True)
class _Side:
    """One of two models that are timed in turn. A turn is `calls` calls; `turns` has, for each, the milliseconds of one
    call, and the share of its time for which threads waited for a processor."""

    model: nn.Module
    calls: int
    settles: bool
    turns: list[tuple[float, float]] = field(default_factory=list)

    @property
    def quiet_ms(self) -> list[float]:
        """Milliseconds of a call, of each turn that others did not disturb."""
        return [ms for ms, waited in self.turns if waited <= DISTURBED]

    def least_disturbed(self, many: int) -> list[float]:
        """Milliseconds of a call, of the `many` turns that others disturbed least, as they came."""
        least = sorted(range(len(self.turns)), key=lambda number: self.turns[number][1])[:many]
        return [self.turns[number][0] for number in sorted(least)]

    def take_turn(self, inputs: Inputs, queue: RunQueue) -> None:
        """One turn; a short one begins with a rest and a call that is not timed: the other model's threads still spin,
        and the caches are full of its weights."""
        if self.settles:
            time.sleep(REST_S)
            call(self.model, inputs)
        before_s = queue.waited_s()
        ms = _turn_ms(self.model, inputs, self.calls)
        waited_s = queue.waited_s() - before_s if queue.known else 0.0
        self.turns.append((ms, waited_s * 1000 / (ms * self.calls)))

    def shorten_turns(self) -> None:
        """Where most turns are disturbed, shorter ones are more often not."""
        if self.calls > 1 and len(self.quiet_ms) < len(self.turns) / 2:
            self.calls = max(1, self.calls // 4)


def warm_up(model: nn.Module, inputs: Inputs) -> None:
    """Calls `model` until it is warm: what a runtime compiles on its first call is compiled."""
    with torch.inference_mode():
        _warmed(model, inputs)


def _warmed(model: nn.Module, inputs: Inputs) -> tuple[int, float]:
    """Calls of a model that is now warm that make a turn, and what a turn takes in seconds."""
    for number in range(WARM_CALLS):
        once_s = _turn_ms(model, inputs, 1) / 1000
        if number and once_s > LONG_S:
            break
    calls = max(1, min(1000, round(TURN_S / max(once_s, 1e-6))))
    return calls, once_s if calls == 1 else _turn_ms(model, inputs, calls) * calls / 1000


def _turns(pair_s: float) -> int:
    """How many turns make a block: `TURNS`, three where a pair of turns takes over 50 ms, one where it takes 300."""
    return TURNS if pair_s < 0.05 else 3 if pair_s < 0.3 else 1


def _turn_ms(model: nn.Module, inputs: Inputs, calls: int) -> float:
    """The mean milliseconds of one call, over `calls` of them; on a GPU until its queue is empty."""
    synchronise = _synchroniser(inputs)
    synchronise()
    started = time.perf_counter()
    for _ in range(calls):
        call(model, inputs)
    synchronise()
    return (time.perf_counter() - started) * 1000 / calls


def _synchroniser(inputs: Inputs) -> Callable[[], None]:
    if any(leaf.is_cuda for leaf in tensors(inputs)):
        return torch.cuda.synchronize
    return lambda: None


def peak_memory_bytes(make: Callable[[], nn.Module], inputs: Inputs) -> tuple[nn.Module, int | None]:
    """Loads a model with `make`, calls it, and returns it with the most memory that took beyond what was held before.

    On a GPU the allocator's peak. On a CPU the resident set's peak (Linux; None elsewhere), which is only true in a
    process that has not yet freed memory of its own: use a fresh one, and only the first model loaded there.
    """
    if not _reset_peak():
        model = make()
        with torch.inference_mode():
            call(model, inputs)
        return model, None
    before = _status_bytes("VmRSS")
    model = make()
    with torch.inference_mode():
        for _ in range(WARM_CALLS):
            call(model, inputs)
    return model, max(_status_bytes("VmHWM") - before, 0)


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0
