"""A made-up compression problem: plans with separable effects, evaluators that sleep."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model_opt.search.context import Context
from model_opt.search.evaluator import Description, Measurement, Phase, Purpose
from model_opt.search.objective import Limit, Objective
from model_opt.search.plan import Plan
from model_opt.search.space import Decision, SearchSpace

OPTIONS = ("0", "1", "2", "3")
SPACE = SearchSpace([Decision(f"d{i}", OPTIONS, ordered=True) for i in range(8)])
OBJECTIVE = Objective(metric="latency_ms", limits=(Limit(metric="accuracy_drop", bound=0.02),))
CONTEXT = Context(device="made up", libraries=(), dtype="float32", threads=1, batch=1, input_shapes=((1, 3),))


def metrics(plan: Plan) -> dict[str, float]:
    strength = sum(int(choice.option) * (1 + i % 3) for i, choice in enumerate(plan.choices))
    return {"latency_ms": 50.0 / (1 + 0.1 * strength), "accuracy_drop": 0.0008 * strength}


def seconds(plan: Plan, typical_s: float) -> float:
    """Lognormal around `typical_s`, the same for a plan wherever it is measured."""
    return float(typical_s * np.exp(np.random.default_rng(int(plan.key[:8], 16)).normal(0.0, 0.4)))


@dataclass(frozen=True)
class Sleeping:
    """Sleeps. A file "hang" or "exit" in `folder` makes one call do it, then goes; "hold" holds all."""

    typical_s: float = 0.02
    folder: Path | None = None
    device: str = "made up"

    def describe(self) -> Description:
        context = Context(device=self.device, libraries=(), dtype="float32", threads=1, batch=1, input_shapes=((1, 3),))
        return Description(context=context, noise={"latency_ms": 0.0, "accuracy_drop": 0.0})

    def measure(self, plan: Plan, purpose: Purpose, phase: Phase) -> Measurement:
        phase("time")
        if self.folder is not None:
            (self.folder / f"pid-{os.getpid()}").touch()
            self._mischief(self.folder)
        time.sleep(seconds(plan, self.typical_s))
        return Measurement(plan=plan, samples={name: (value,) for name, value in metrics(plan).items()})

    def _mischief(self, folder: Path) -> None:
        while (folder / "hold").exists():
            time.sleep(0.02)
        for name in ("hang", "exit"):
            try:
                (folder / name).unlink()
            except FileNotFoundError:
                continue
            if name == "exit":
                os._exit(9)
            time.sleep(600)
