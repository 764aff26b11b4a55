"""A trial: one plan of a search, and what became of it. The one record of a search."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any

from model_opt.search.evaluator import Failure, Measurement, Outcome, Reason
from model_opt.search.plan import Plan, read_plan

if TYPE_CHECKING:
    from model_opt.search.beliefs import Estimate

GIVEN = "given"
"""The purpose of what needed no measuring: the original, beside itself."""


class TrialState(StrEnum):
    """Where a trial is; see `Trial`."""

    RUNNING = "running"
    MEASURED = "measured"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One plan of a search, from when it is begun.

        running ──┬─▶ measured   every metric was measured
                  ├─▶ stopped    early: a limit was certainly broken, and the rest was not measured
                  └─▶ failed     illegal, wrong, crashed, out of memory, or over its deadline

    What a search's end cuts off is no trial: it counts as never begun. `purpose` is "explore", "verify" or `GIVEN`,
    `outcome` is None while it runs. `at_s` is when it was settled, in seconds since the search began (wall time in a
    coordinator); `busy_s` how long that took. `context` is the key of where, `worker` who measured it on a cluster.
    `predicted` is what was believed of each metric before, as (mean, standard deviation); empty where nothing was
    known.
    """

    plan: Plan
    purpose: str
    outcome: Outcome | None = None
    at_s: float = 0.0
    busy_s: float = 0.0
    context: str = ""
    worker: str | None = None
    predicted: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def state(self) -> TrialState:
        """Where it is."""
        if self.outcome is None:
            return TrialState.RUNNING
        if isinstance(self.outcome, Failure):
            return TrialState.FAILED
        return TrialState.STOPPED if self.outcome.partial else TrialState.MEASURED

    @property
    def measurement(self) -> Measurement | None:
        """What was measured, if anything was."""
        return self.outcome if isinstance(self.outcome, Measurement) else None

    @cached_property
    def metrics(self) -> Mapping[str, float]:
        """The mean of each metric's samples; empty where it failed."""
        samples = self.measurement.samples if self.measurement else {}
        return {name: math.fsum(values) / len(values) for name, values in samples.items() if values}

    @property
    def seconds(self) -> Mapping[str, float]:
        """The length of each phase."""
        return self.outcome.seconds if self.outcome else {}

    @property
    def failure(self) -> str | None:
        """Why it failed, as "illegal: nothing to prune"; None where it did not."""
        return f"{self.outcome.reason}: {self.outcome.message}" if isinstance(self.outcome, Failure) else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know of it."""
        return self.measurement.notes if self.measurement else ()

    @property
    def disturbed(self) -> frozenset[str]:
        """The metrics that other programs spoilt."""
        return self.measurement.disturbed if self.measurement else frozenset()

    def as_fields(self) -> dict[str, Any]:
        """The trial as JSON can hold it; `from_fields` reads it back equal."""
        fields = {
            "plan": asdict(self.plan),
            "purpose": str(self.purpose),
            "at_s": self.at_s,
            "busy_s": self.busy_s,
            "metrics": dict(self.metrics),
            "seconds": dict(self.seconds),
            "failure": self.failure,
            "notes": list(self.notes),
            "predicted": {name: list(pair) for name, pair in self.predicted.items()},
            "context": self.context,
            "worker": self.worker,
            "disturbed": sorted(self.disturbed),
        }
        if isinstance(self.outcome, Failure):
            return fields | ({"blamed": sorted(self.outcome.blamed)} if self.outcome.blamed else {})
        if self.outcome is not None:
            fields |= {"samples": dict(self.outcome.samples), "partial": self.outcome.partial}
        return fields

    @classmethod
    def from_fields(cls, raw: Mapping[str, Any]) -> "Trial":
        """Reads what `as_fields` made of one, also by way of JSON, or version 0.1 wrote. Raises `TypeError`,
        `KeyError`, `ValueError` for anything else."""
        plan = read_plan(raw["plan"])
        return cls(
            plan=plan,
            purpose=raw["purpose"],
            outcome=_read_outcome(plan, raw),
            at_s=float(raw["at_s"]),
            busy_s=float(raw.get("busy_s", 0.0)),
            context=raw.get("context", ""),
            worker=raw.get("worker"),
            predicted={name: (float(mean), float(std)) for name, (mean, std) in raw.get("predicted", {}).items()},
        )


def predicted_of(expected: "Mapping[str, Estimate]") -> dict[str, tuple[float, float]]:
    """What was believed of each metric, as a trial keeps it: (mean, standard deviation)."""
    return {metric: (belief.mean, belief.std) for metric, belief in expected.items()}


def _read_outcome(plan: Plan, raw: Mapping[str, Any]) -> Outcome:
    seconds = dict(raw.get("seconds", {}))
    if raw.get("failure") is not None:
        blamed = frozenset((decision, option) for decision, option in raw.get("blamed", ()))
        reason, message = _reason(raw["failure"])
        return Failure(plan=plan, reason=reason, message=message, seconds=seconds, blamed=blamed)
    samples = raw.get("samples") or {name: [value] for name, value in raw["metrics"].items()}
    return Measurement(
        plan=plan,
        samples={name: tuple(map(float, values)) for name, values in samples.items()},
        seconds=seconds,
        partial=bool(raw.get("partial", False)),
        disturbed=frozenset(raw.get("disturbed", ())),
        notes=tuple(raw["notes"]),
    )


def _reason(failure: str) -> tuple[Reason, str]:
    reason, _, message = failure.partition(": ")
    return (Reason(reason), message) if reason in set(Reason) else (Reason.ERROR, failure)
