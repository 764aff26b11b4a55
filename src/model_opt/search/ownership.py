"""Which worker may propose which plan: everyone computes the same owner without a word exchanged."""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from model_opt.errors import InvalidInput
from model_opt.search.plan import Plan

GROUP = 64
"""A fleet of more workers than this has groups of half to once so many, on average."""
_STEPS, _ZERO = 4, 128
"""A group's weight is written in quarter octaves, as a byte: 128 is a weight of one, 0 is nobody."""


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Who takes part, as far as one worker has to know: the weights of its own group, by name, and of every group.

    In a large fleet a plan is a group's first, then one of its workers': whoever asks, asks of some hundred names, and
    is told in a kilobyte. `groups` has a byte a group, and is empty where there is one.
    """

    members: Mapping[str, float]
    workers: int
    groups: bytes = field(default=b"", repr=False)
    group: int = 0

    @cached_property
    def group_weights(self) -> Mapping[str, float]:
        """The weights of all groups that have workers, by number."""
        return {str(at): 2.0 ** ((code - _ZERO) / _STEPS) for at, code in enumerate(self.groups) if code}


def shares_of(weights: Mapping[str, float]) -> list[Shares]:
    """The shares of a fleet with these weights by worker: one for each group, the worker's own is at `group_of`."""
    groups: list[dict[str, float]] = [{} for _ in range(groups_for(len(weights)))]
    for worker, weight in weights.items():
        groups[group_of(worker, len(groups))][worker] = weight
    codes = bytes(_code(sum(members.values())) for members in groups) if len(groups) > 1 else b""
    return [
        Shares(members=members, workers=len(weights), groups=codes, group=number)
        for number, members in enumerate(groups)
    ]


def groups_for(workers: int) -> int:
    """How many groups a fleet has: a power of two, so that a growing fleet splits its groups."""
    return 1 << max(0, math.ceil(math.log2(max(workers, 1) / GROUP)))


def group_of(worker: str, groups: int) -> int:
    """The number of a worker's group, of so many."""
    return int.from_bytes(hashlib.blake2b(worker.encode(), digest_size=8).digest(), "big") % groups


def _code(weight: float) -> int:
    return min(max(round(_STEPS * math.log2(weight)) + _ZERO, 1), 255) if weight else 0


def owner(plan_key: str, roster: Mapping[str, float]) -> str:
    """The worker of `roster` (name to weight, the measured speed) that owns the plan.

    Rendezvous hashing (Thaler and Ravishankar 1998) with logarithmic weights (Schindelhauer and Schomaker 2005): the
    least -log(u) / weight wins, u in (0, 1) hashed from worker and plan. A worker's share is its share of the weights,
    and when one joins or leaves only its own plans move. Raises `InvalidInput` for an empty roster or a weight that is
    not positive and finite.
    """
    _check(tuple(roster.items()))
    return min(roster, key=lambda worker: (-math.log(_uniform(worker, plan_key)) / roster[worker], worker))


def owned_by(worker: str, shares: Shares | Mapping[str, float]) -> Callable[[Plan], bool]:
    """The question "may `worker` propose this plan?", as `Searcher.ask` takes it; a mapping is a fleet's one group."""
    known = shares if isinstance(shares, Shares) else Shares(members=dict(shares), workers=len(shares))
    _check(tuple(known.members.items()))
    if worker not in known.members:
        raise InvalidInput(f"worker {worker!r} is not in the roster: {sorted(known.members)}")
    group, groups = str(known.group), known.group_weights

    def owned(plan: Plan) -> bool:
        return (not groups or owner(plan.key, groups) == group) and owner(plan.key, known.members) == worker

    return owned


def _uniform(worker: str, plan_key: str) -> float:
    raw = worker.encode()
    digest = hashlib.blake2b(len(raw).to_bytes(4, "big") + raw + plan_key.encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") + 0.5) / 2.0**64


@lru_cache(maxsize=64)
def _check(roster: tuple[tuple[str, float], ...]) -> None:
    if not roster:
        raise InvalidInput("the roster is empty")
    for worker, weight in roster:
        if not (weight > 0 and math.isfinite(weight)):
            raise InvalidInput(f"weight of {worker!r} must be positive and finite, not {weight!r}")
