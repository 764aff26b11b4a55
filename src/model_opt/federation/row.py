"""A row: what one search of one deployment has measured of one plan in one context. Rows are what is shared."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from model_opt.federation.moments import Moments
from model_opt.search.plan import Plan


class RowKey(NamedTuple):
    """What a row is known by everywhere. `signature`, `plan` and `context` are keys (32 hexadecimal digits)."""

    federation: str
    signature: str
    plan: str
    context: str
    origin: str
    epoch: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """The moments of every metric of one plan, cumulative for its origin and epoch.

    `signature` and `context` are keys; `plan` is the value, so that whoever receives a row computes the plan's key
    anew. `sequence` is that of the envelope which brought the row: of two rows with one key the larger wins.
    """

    federation: str
    signature: str
    plan: Plan
    context: str
    origin: str
    epoch: str
    sequence: int
    moments: Mapping[str, Moments]

    @cached_property
    def key(self) -> RowKey:
        """The row's key; the plan's part is computed from its choices."""
        return RowKey(self.federation, self.signature, self.plan.key, self.context, self.origin, self.epoch)
