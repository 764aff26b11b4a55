"""The last word on speed: the saved models, loaded in a process that has done nothing else, timed in turn."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from model_opt.compression.evaluation.time_pair import peak_memory_bytes, time_pair
from model_opt.compression.inputs import Inputs
from model_opt.compression.save_model import load_model
from model_opt.search.evaluator import Description

BLOCKS = 9
TIMING_S = 6.0


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One process's timing. `peak_bytes` is of the model that was loaded first, None where the system does not tell.

    `quiet` is False where other programs held the process up all the time: the figures are then a busy machine's.
    """

    log_speedup: float
    baseline_ms: float
    plan_ms: float
    peak_bytes: int | None
    busy: float | None
    quiet: bool = True

    @property
    def speedup(self) -> float:
        """The original's latency ÷ the plan's."""
        return math.exp(self.log_speedup)


class FreshTiming:
    """Loads two saved models and times them; made once a process.

    `plan_first` says which is loaded first: only that one's peak memory can be told.
    """

    def __init__(self, baseline: Path, plan: Path, example: Inputs, *, threads: int, plan_first: bool) -> None:
        torch.set_num_threads(threads)
        self._paths = {"baseline": baseline, "plan": plan}
        self._example = example
        self._first = "plan" if plan_first else "baseline"

    def describe(self) -> Description:
        """Nothing is known before the comparison."""
        return Description()

    def compare(self, patience_s: float) -> Comparison:
        """Loads and times both, for `patience_s` seconds more than usual where others disturb. Raises what loading or
        calling the models raises.
        """
        first, peak = peak_memory_bytes(lambda: load_model(self._paths[self._first]), self._example)
        second = "baseline" if self._first == "plan" else "plan"
        models = {self._first: first, second: load_model(self._paths[second])}
        paired = time_pair(
            models["baseline"],
            models["plan"],
            self._example,
            blocks=BLOCKS,
            at_most_s=TIMING_S,
            patience_s=patience_s,
        )
        return Comparison(
            log_speedup=float(np.median(paired.log_ratios)),
            baseline_ms=float(np.median(paired.baseline_ms)),
            plan_ms=float(np.median(paired.plan_ms)),
            peak_bytes=peak,
            busy=paired.busy,
            quiet=paired.quiet,
        )
