"""Who takes part in a search, how fast each is, and who has fallen silent."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median_high

from model_opt.actors.leases import Holder
from model_opt.actors.messages import Ask

TOO_SLOW = 2.0
"""A worker that takes this many times as long as the fleet's typical one may leave the last plans to the others."""


@dataclass
class _Member:
    holder: Holder
    context: str
    last_s: float
    speed: float = 0.0
    exhausted_at: int = -1

    def share(self) -> tuple[Holder, str, int | None]:
        """What the weights depend on."""
        return self.holder, self.context, round(2 * math.log2(self.speed)) if self.speed > 0 else None


class Roster:
    """The workers that were heard of within `lost_after_s` seconds. It decides shares, never counts."""

    def __init__(self, *, lost_after_s: float) -> None:
        self._lost_after_s = lost_after_s
        self._members: dict[str, _Member] = {}
        self._weights: dict[str, Mapping[str, float]] = {}

    def __len__(self) -> int:
        return len(self._members)

    def replaced(self, holder: Holder) -> bool:
        """Whether a later life of the same worker is known. Incarnations sort by when they began."""
        member = self._members.get(holder.worker)
        return member is not None and member.holder.incarnation > holder.incarnation

    def seen(self, ask: Ask, now: float) -> None:
        """Notes a worker's turn."""
        member = self._members.get(ask.holder.worker)
        if member is None or member.holder != ask.holder:
            member = self._members[ask.holder.worker] = _Member(ask.holder, ask.context, now)
            self._weights = {}
        before = member.share()
        member.last_s, member.context, member.speed = now, ask.context, ask.speed
        member.exhausted_at = ask.cursor if ask.exhausted else -1
        if member.share() != before:
            self._weights = {}

    def alive(self, holder: Holder, now: float) -> bool:
        """Notes a sign of life; False from a life that is not the worker's latest, or that was forgotten."""
        member = self._members.get(holder.worker)
        if member is None or member.holder != holder:
            return False
        member.last_s = now
        return True

    def remove(self, worker: str) -> None:
        """A worker has said goodbye."""
        if self._members.pop(worker, None) is not None:
            self._weights = {}

    def forget(self, now: float) -> None:
        """Strikes out who has been silent for too long."""
        for worker, member in list(self._members.items()):
            if now - member.last_s > self._lost_after_s:
                self.remove(worker)

    def weights(self, context: str) -> Mapping[str, float]:
        """The workers of `context` and their speeds, in half octaves so that shares do not move all the time."""
        if context not in self._weights:
            here = {name: m.speed for name, m in self._members.items() if m.context == context}
            typical = median_high([speed for speed in here.values() if speed > 0] or [1.0])
            self._weights[context] = {name: _half_octave((speed or typical) / typical) for name, speed in here.items()}
        return self._weights[context]

    def exhausted(self, news: int) -> bool:
        """Whether everybody knows all `news` and can propose nothing more."""
        return bool(self._members) and all(m.exhausted_at >= news for m in self._members.values())

    def in_time(self, worker: str, work: float) -> int:
        """How many leases `worker` can measure until the fleet is done with `work` plans; at least one, apart from a
        worker that is `TOO_SLOW`, for which the others would wait: it needs twice the time."""
        speeds, typical = self._speeds(), self._typical()
        own = speeds.get(worker, typical)
        most = work / sum(speeds.values()) * own
        return int(most / 2) if own * TOO_SLOW <= typical else max(int(most + 0.5), 1)

    def _speeds(self) -> dict[str, float]:
        typical = self._typical()
        return {name: member.speed or typical for name, member in self._members.items()}

    def _typical(self) -> float:
        return median_high([member.speed for member in self._members.values() if member.speed > 0] or [1.0])


def _half_octave(ratio: float) -> float:
    return float(2.0 ** (round(2 * math.log2(min(max(ratio, 1 / 64), 64.0))) / 2))
