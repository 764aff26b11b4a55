"""A trial: one plan of a search, and what became of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from model_opt.search.plan import Plan, read_plan

GIVEN = "given"
"""The purpose of what needed no measuring: the original, beside itself."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One settled plan: its mean metrics, or why it failed. `at_s` is when, in seconds since the start; `purpose` is
    "explore", "verify" or `GIVEN`.

    `predicted` is what was believed of each metric before it was measured, as (mean, standard deviation); empty where
    nothing was known. `worker` is who measured it on a cluster. `disturbed` are the metrics that other programs spoilt.
    """

    plan: Plan
    purpose: str
    at_s: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    failure: str | None = None
    notes: tuple[str, ...] = ()
    predicted: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    worker: str | None = None
    disturbed: tuple[str, ...] = ()

    @classmethod
    def from_fields(cls, raw: Mapping[str, Any]) -> "Trial":
        """Reads what `asdict` made of one, also by way of JSON. Raises `TypeError`, `KeyError` for anything else."""
        predicted = {name: (float(mean), float(std)) for name, (mean, std) in raw.get("predicted", {}).items()}
        fields = {"plan": read_plan(raw["plan"]), "notes": tuple(raw["notes"]), "predicted": predicted}
        return cls(**dict(raw) | fields | {"disturbed": tuple(raw.get("disturbed", ()))})
