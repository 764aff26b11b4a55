"""Who takes part in a search, how fast each is, and who has fallen silent."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from model_opt.actors.leases import Holder
from model_opt.actors.messages import Ask

TOO_SLOW = 2.0
"""A worker that takes this many times as long as the fleet's typical one leaves the last plans to the others."""


@dataclass
class _Member:
    holder: Holder
    context: str
    last_s: float
    speed: float = 0.0
    exhausted_at: int = -1


class Roster:
    """The workers that were heard of within `lost_after_s` seconds. It decides shares, never counts."""

    def __init__(self, *, lost_after_s: float) -> None:
        self._lost_after_s = lost_after_s
        self._members: dict[str, _Member] = {}

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
        member.last_s, member.context, member.speed = now, ask.context, ask.speed
        member.exhausted_at = ask.cursor if ask.exhausted else -1

    def alive(self, holder: Holder, now: float) -> bool:
        """Notes a sign of life; False from a life that is not the worker's latest, or that was forgotten."""
        member = self._members.get(holder.worker)
        if member is None or member.holder != holder:
            return False
        member.last_s = now
        return True

    def remove(self, worker: str) -> None:
        """A worker has said goodbye."""
        self._members.pop(worker, None)

    def forget(self, now: float) -> None:
        """Strikes out who has been silent for too long."""
        for worker, member in list(self._members.items()):
            if now - member.last_s > self._lost_after_s:
                del self._members[worker]

    def weights(self, context: str) -> Mapping[str, float]:
        """The workers of `context` and their speeds, in half octaves so that shares do not move all the time."""
        speeds = {name: m.speed for name, m in self._members.items() if m.context == context}
        known = sorted(speed for speed in speeds.values() if speed > 0)
        typical = known[len(known) // 2] if known else 1.0
        return {name: _half_octave((speed or typical) / typical) for name, speed in speeds.items()}

    def exhausted(self, news: int) -> bool:
        """Whether everybody knows all `news` and can propose nothing more."""
        return bool(self._members) and all(m.exhausted_at >= news for m in self._members.values())

    def too_slow(self, worker: str, left: int) -> bool:
        """Whether the others will have measured the `left` plans before this worker has measured one."""
        speeds = {name: m.speed for name, m in self._members.items()}
        own = speeds.get(worker, 0.0)
        known = sorted(speed for speed in speeds.values() if speed > 0)
        if own <= 0 or len(known) < 2 or own * TOO_SLOW > known[len(known) // 2]:
            return False
        return left / (sum(known) - own) < 1.0 / own


def _half_octave(ratio: float) -> float:
    return float(2.0 ** (round(2 * math.log2(min(max(ratio, 1 / 64), 64.0))) / 2))
