"""What measures plans, and what it hands back. Nothing here knows torch: a search over anything can be plugged in."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from model_opt.search.context import Context
from model_opt.search.plan import Plan


class Purpose(StrEnum):
    """Why a plan is measured."""

    EXPLORE = "explore"
    VERIFY = "verify"


class Reason(StrEnum):
    """Why a plan could not be measured."""

    ILLEGAL = "illegal"
    """A technique cannot be used here, or did nothing: never tried again in this context."""
    WRONG_OUTPUT = "wrong_output"
    ERROR = "error"
    CRASH = "crash"
    OUT_OF_MEMORY = "out_of_memory"
    DEADLINE = "deadline"


PART_NOTE = "accuracy_drop is that of "
"""How a note begins that names the part of an answer that lost most, of several."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A measured plan: independent samples of each metric, and where the time went.

    `samples["log_speedup"]` has one value a timing block, exact metrics have one value. `seconds` maps a phase
    ("prepare", "time", "accuracy") to its length. `partial` says that the plan was dropped before everything was
    measured: its last metric is a first look. `disturbed` names the metrics that other programs on the machine spoilt:
    they guide this search, and are not kept as knowledge. `notes` are for people.
    """

    plan: Plan
    samples: Mapping[str, tuple[float, ...]]
    seconds: Mapping[str, float] = field(default_factory=dict)
    partial: bool = False
    disturbed: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A plan that could not be measured. `blamed` are those of its (decision, option) pairs, left alone or not, that
    are known to fail together in every plan: none is proposed that has them all. Empty where that is not known."""

    plan: Plan
    reason: Reason
    message: str
    seconds: Mapping[str, float] = field(default_factory=dict)
    blamed: frozenset[tuple[str, str]] = frozenset()


Outcome = Measurement | Failure


@dataclass(frozen=True, kw_only=True)
class Description:
    """What an evaluator knows before the first plan.

    Where `context` is another's, or another text, results do not mix. `baseline` are the metrics of the model as it is,
    `noise` the variance of one measurement of a metric, None where it is to be learnt. `seconds` says how long a phase
    takes for the baseline: a plan's may take ten times as long. `more` is JSON-like, for people.
    """

    context: Context | str = ""
    baseline: Mapping[str, float] = field(default_factory=dict)
    noise: Mapping[str, float | None] = field(default_factory=dict)
    accuracy_source: str = ""
    warnings: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    more: Mapping[str, object] = field(default_factory=dict)

    @property
    def context_key(self) -> str:
        """What tells contexts apart."""
        return self.context.key if isinstance(self.context, Context) else self.context


class Phase(Protocol):
    """Told what a measurement is doing, so that each phase can have a deadline and progress can be shown."""

    def __call__(self, name: str) -> None:
        """`name` begins: "prepare", "compile", "time", "accuracy", "save"."""


class Evaluator(Protocol):
    """Measures plans on one device, in one process that may be killed at any time.

    Made in that process by a picklable factory `() -> Evaluator`; used by one thread. `measure` may be called again
    for the same plan (more samples). It raises `TechniqueError` where a plan is illegal and `MeasurementFailed` where
    outputs are wrong; anything else that it raises settles the plan as failed with reason `error`.
    """

    def describe(self) -> Description:
        """What is known before the first plan: the context, the baseline's metrics and their noise."""

    def measure(self, plan: Plan, purpose: Purpose, phase: Phase) -> Measurement:
        """Measures `plan`."""
