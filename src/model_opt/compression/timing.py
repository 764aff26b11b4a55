"""Timing two models against each other: in turn (A B A B …), warm, so that a drifting machine slows both alike."""

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from model_opt.compression.inputs import Inputs, call

WARM_CALLS = 3
LONG_S = 0.5
"""Two calls that each take longer are warm enough."""
TURN_S = 0.008
"""One model's turn lasts about this long: far more than the clock's resolution, less than most disturbances."""
TURNS = 5
"""A block is the median of this many turns of each model, of fewer where one call is long."""


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Timings of a plan beside its baseline, one value a block: `baseline_ms` and `plan_ms`, both `[blocks]`.

    `busy` is the share of the machine's processor time that other programs took meanwhile, or None if unknown.
    """

    baseline_ms: np.ndarray
    plan_ms: np.ndarray
    busy: float | None

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


def time_pair(baseline: nn.Module, plan: nn.Module, inputs: Inputs, *, blocks: int, at_most_s: float) -> Paired:
    """Times both in turn for `blocks` blocks, or fewer (at least 3) once `at_most_s` seconds are spent."""
    with torch.inference_mode():
        (many, baseline_s), (plan_many, plan_s) = _warmed(baseline, inputs), _warmed(plan, inputs)
        calls, turns = (many, plan_many), _turns(baseline_s + plan_s)
        started, other = time.perf_counter(), OtherPrograms()
        times: list[NDArray[np.float64]] = []
        while len(times) < blocks and (len(times) < 3 or time.perf_counter() - started < at_most_s):
            pairs = [
                [_turn_ms(model, inputs, n) for model, n in zip((baseline, plan), calls, strict=True)]
                for _ in range(turns)
            ]
            times.append(np.median(pairs, axis=0))
    table = np.array(times)
    return Paired(baseline_ms=table[:, 0], plan_ms=table[:, 1], busy=other.share())


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
    from model_opt.compression.inputs import tensors

    if any(leaf.is_cuda for leaf in tensors(inputs)):
        return torch.cuda.synchronize
    return lambda: None


class OtherPrograms:
    """How much of the machine other programs use, from /proc/stat; knows nothing where that is missing."""

    def __init__(self) -> None:
        self._busy_s, self._own_s = _machine_busy_s(), _own_s()
        self._started = time.perf_counter()

    def share(self) -> float | None:
        """Processor seconds of others ÷ (seconds × processors) since this was made, in [0, 1]."""
        busy_s = _machine_busy_s()
        if busy_s is None or self._busy_s is None:
            return None
        elapsed_s = max(time.perf_counter() - self._started, 1e-9)
        others_s = (busy_s - self._busy_s) - (_own_s() - self._own_s)
        return float(np.clip(others_s / (elapsed_s * (torch.get_num_threads() or 1)), 0, 1))


def _machine_busy_s() -> float | None:
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return None
    ticks = [int(field) for field in fields]
    return (sum(ticks) - ticks[3] - ticks[4]) / 100


def _own_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


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
