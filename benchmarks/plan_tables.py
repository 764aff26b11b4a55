"""Tables of compression plans that were really measured, to be searched without measuring again.

`load("plain_narrow")` reads `benchmarks/data/plain_narrow.npz`, made by `compression_tables.py`. Six tables: `NAMES`.
Arrays of one table, by plan: `codes` uint8 `[plans, decisions]` (the option's number of every decision of the space),
`log_speedup` and `latency_ms` float32 `[plans, samples]` (NaN where a plan failed), `log_size_ratio`, `accuracy_drop`
and `accuracy_error` float32 `[plans]`, `failure` int16 `[plans]` (-1, or the place in `reasons`), and `head`, a JSON
text: decisions, rules, frozen choices, signature, context, the original's figures, and the error of a figure.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_opt.search.context import Context
from model_opt.search.evaluator import Failure, Measurement, Outcome, Reason
from model_opt.search.model_signature import Family, ModelSignature, Stage
from model_opt.search.plan import Choice, Plan
from model_opt.search.space import Decision, Forbid, SearchSpace

DATA = Path(__file__).parent / "data"
NAMES = ("plain_narrow", "plain_wide", "residual", "vit_shallow", "vit_small", "vit_wide")
EXACT = ("log_size_ratio", "accuracy_drop")
TIMED = ("log_speedup", "latency_ms")


@dataclass(frozen=True, kw_only=True)
class PlanTable:
    """One network's plans. `samples` maps a timed metric to `[plans, samples]`, `exact` the others to `[plans]`;
    `reasons[i]` says why plan i failed, None where it did not. `error` is the standard deviation of a plan's
    log_speedup from one process to another."""

    name: str
    space: SearchSpace
    signature: ModelSignature
    context: Context
    baseline: Mapping[str, float]
    error: float
    plans: Sequence[Plan]
    samples: Mapping[str, NDArray[np.float64]]
    exact: Mapping[str, NDArray[np.float64]]
    reasons: Sequence[str | None]

    @cached_property
    def places(self) -> Mapping[Plan, int]:
        """The place of every plan."""
        return {plan: place for place, plan in enumerate(self.plans)}

    @cached_property
    def noise(self) -> Mapping[str, float]:
        """The variance of one sample of each timed metric, pooled over plans; the others are exact."""
        whole = {name: values[np.isfinite(values).all(axis=1)] for name, values in self.samples.items()}
        return {name: float(np.var(values, axis=1, ddof=1).mean()) for name, values in whole.items()}

    def truth(self, plan: Plan) -> dict[str, float] | None:
        """The mean of each metric of `plan`, None where it failed. The bare plan is the original itself."""
        if plan == Plan():
            return dict.fromkeys(EXACT, 0.0) | {"log_speedup": 0.0, "latency_ms": self.baseline["latency_ms"]}
        place = self.places[plan]
        if self.reasons[place] is not None:
            return None
        means = {name: float(np.nanmean(values[place])) for name, values in self.samples.items()}
        return means | {name: float(values[place]) for name, values in self.exact.items()}

    def measure(self, plan: Plan, rng: np.random.Generator) -> Outcome:
        """One measurement of `plan`: as many of its timing blocks as there are, drawn with replacement (a measurement
        in the product is as many blocks too), and the value of what is exact."""
        if plan == Plan():
            return Measurement(plan=plan, samples={name: (value,) for name, value in (self.truth(plan) or {}).items()})
        place = self.places[plan]
        reason = self.reasons[place]
        if reason is not None:
            return Failure(plan=plan, reason=Reason.ILLEGAL, message=reason)
        there = np.flatnonzero(np.isfinite(self.samples["log_speedup"][place]))
        drawn = rng.choice(there, len(there))
        samples = {name: tuple(values[place, drawn].tolist()) for name, values in self.samples.items()}
        return Measurement(plan=plan, samples=samples | {n: (float(v[place]),) for n, v in self.exact.items()})


def load(name: str) -> PlanTable:
    """The table `name`."""
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as file:
        head, arrays = json.loads(str(file["head"])), {key: file[key] for key in file.files if key != "head"}
    space = space_from(head)
    return PlanTable(
        name=name,
        space=space,
        signature=_signature(head["signature"]),
        context=Context(**{key: _tuples(value) for key, value in head["context"].items()}),
        baseline=head["baseline"],
        error=head["error"],
        plans=[space.decode(codes) for codes in arrays["codes"].astype(np.int16)],
        samples={metric: arrays[metric].astype(np.float64) for metric in TIMED},
        exact={metric: arrays[metric].astype(np.float64) for metric in EXACT},
        reasons=[None if place < 0 else head["reasons"][place] for place in arrays["failure"]],
    )


def space_from(head: Mapping[str, Any]) -> SearchSpace:
    """The search space that a table's head describes."""
    decisions = [
        Decision(d["name"], d["options"], ordered=d["ordered"], version=d["version"]) for d in head["decisions"]
    ]
    rules = [Forbid(rule["when"], rule["reason"]) for rule in head["forbidden"]]
    return SearchSpace(decisions, rules, [Choice(**choice) for choice in head["frozen"]])


def _signature(raw: Mapping[str, Any]) -> ModelSignature:
    stages = tuple(Stage(**stage) for stage in raw["stages"])
    return ModelSignature(**{**raw, "family": Family(raw["family"]), "stages": stages})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
