"""Which worker may propose which plan: everyone computes the same owner without a word exchanged."""

import hashlib
import math
from collections.abc import Callable, Mapping
from functools import lru_cache

from model_opt.errors import InvalidInput
from model_opt.search.plan import Plan


def owner(plan_key: str, roster: Mapping[str, float]) -> str:
    """The worker of `roster` (name to weight, the measured speed) that owns the plan.

    Rendezvous hashing (Thaler and Ravishankar 1998) with logarithmic weights (Schindelhauer and Schomaker 2005): the
    least -log(u) / weight wins, u in (0, 1) hashed from worker and plan. A worker's share is its share of the weights,
    and when one joins or leaves only its own plans move. Raises `InvalidInput` for an empty roster or a weight that is
    not positive and finite.
    """
    _check(tuple(roster.items()))
    return min(roster, key=lambda worker: (-math.log(_uniform(worker, plan_key)) / roster[worker], worker))


def owned_by(worker: str, roster: Mapping[str, float]) -> Callable[[Plan], bool]:
    """The question "may `worker` propose this plan?", as `Searcher.ask` takes it."""
    fixed = dict(roster)
    _check(tuple(fixed.items()))
    if worker not in fixed:
        raise InvalidInput(f"worker {worker!r} is not in the roster: {sorted(fixed)}")
    return lambda plan: owner(plan.key, fixed) == worker


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
