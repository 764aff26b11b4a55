"""What became of the plans that a search tried: one count, told the same everywhere."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from model_opt.metrics import plain
from model_opt.search.evaluator import Purpose, Reason
from model_opt.search.trial import GIVEN, Trial

REFUSED = frozenset({Reason.ILLEGAL, Reason.WRONG_OUTPUT})
"""Plans that cannot be used here: a technique does not apply, or the outputs are wrong."""


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Plans by what became of them; what is measured `again` is not counted twice elsewhere."""

    measured: int
    refused: int
    cut_off: int
    failed: int
    again: int = 0

    @classmethod
    def of(cls, observed: Iterable[Trial]) -> "Tally":
        """The count of what was settled; the original, which needed no measuring, is left out."""
        tried = [seen for seen in observed if seen.purpose != GIVEN]
        first = [seen for seen in tried if seen.purpose != Purpose.VERIFY]
        reasons = Counter(seen.failure.partition(":")[0] for seen in first if seen.failure is not None)
        return cls._made(len(first), reasons, again=len(tried) - len(first))

    @classmethod
    def of_status(cls, status: Mapping[str, Any]) -> "Tally":
        """The count of a fleet's coordinator, which does not tell what was measured again."""
        return cls._made(int(status["settled"]), Counter(status.get("failures", {})))

    @classmethod
    def _made(cls, tried: int, reasons: Mapping[str, int], again: int = 0) -> "Tally":
        refused = sum(count for reason, count in reasons.items() if reason in REFUSED)
        cut_off = reasons.get(Reason.DEADLINE, 0)
        failed = sum(reasons.values())
        return cls(
            measured=tried - failed, refused=refused, cut_off=cut_off, failed=failed - refused - cut_off, again=again
        )

    @property
    def tried(self) -> int:
        """How many plans were begun."""
        return self.measured + self.refused + self.cut_off + self.failed

    def __str__(self) -> str:
        """As "8 plans tried: 2 measured, 2 refused, 4 cut off"; what is zero is not named."""
        parts = [(self.refused, "refused"), (self.cut_off, "cut off"), (self.failed, "failed")]
        told = [f"{count} {what}" for count, what in [(self.measured, "measured"), *parts] if count]
        again = f"; {self.again} measured again" if self.again else ""
        plans = f"{self.tried} plan{'s' * (self.tried != 1)}"
        if self.measured == self.tried:
            return f"{plans} measured{again}"
        return f"{plans} tried: {', '.join(told)}{again}"


def of_tried(importance: Mapping[str, float], observed: Iterable[Trial]) -> dict[str, float]:
    """`importance` of those decisions that some plan here had, as shares of one: of the others nothing was learnt."""
    had = {choice.decision for seen in observed if seen.metrics for choice in seen.plan.choices}
    kept = {name: share for name, share in importance.items() if name in had}
    whole = sum(kept.values())
    return {name: share / whole for name, share in kept.items()} if whole else {}


def scalars(observed: Trial) -> dict[str, float]:
    """The finite metrics of a plan by the names that people use, and `failed`: 1 where it could not be measured."""
    shown = dict(plain(name, value) for name, value in observed.metrics.items())
    return {name: value for name, value in shown.items() if math.isfinite(value)} | {
        "failed": float(observed.failure is not None)
    }
