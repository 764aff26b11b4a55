"""Who takes part in a search, how fast each is, and who has fallen silent."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median_high

from model_opt.fleet.leases import Holder
from model_opt.fleet.messages import WorkRequest
from model_opt.search.ownership import Shares, group_of, shares_of

TOO_SLOW = 2.0
"""A worker that takes this many times as long as the fleet's typical one may leave the last plans to the others."""

LARGE, RENEW_S = 256, 1.0
"""In a fleet of more workers than this, shares are computed anew once in so many seconds."""


@dataclass
class _Member:
    holder: Holder
    context: str
    last_s: float
    speed: float = 0.0
    exhausted_at: int = -1
    late: bool = False

    def share(self) -> tuple[Holder, str, int | None]:
        """What the weights depend on."""
        return self.holder, self.context, round(2 * math.log2(self.speed)) if self.speed > 0 else None


class Roster:
    """The workers that were heard of within `lost_after_s` seconds. It decides shares, never counts."""

    def __init__(self, *, lost_after_s: float) -> None:
        self._lost_after_s = lost_after_s
        self._members: dict[str, _Member] = {}  # whoever was heard of last comes last
        self._shares: dict[str, list[Shares]] = {}
        self._pace: tuple[float, float] | None = None
        self._moved = False
        self._renew_at = 0.0
        self.lost = 0
        """How many workers fell silent, or were started again, without a goodbye."""

    def __len__(self) -> int:
        return len(self._members)

    def replaced(self, holder: Holder) -> bool:
        """Whether a later life of the same worker is known. Incarnations sort by when they began."""
        member = self._members.get(holder.worker)
        return member is not None and member.holder.incarnation > holder.incarnation

    def seen(self, ask: WorkRequest, now: float) -> None:
        """Notes a worker's turn."""
        member = self._members.get(ask.holder.worker)
        if member is None or member.holder != ask.holder:
            self.lost += member is not None
            member = self._members[ask.holder.worker] = _Member(ask.holder, ask.context, now)
            self._moved = True
        before = member.share()
        self._heard(member, now)
        member.context, member.speed = ask.context, ask.speed
        member.exhausted_at, member.late = ask.cursor if ask.exhausted else -1, ask.late
        if member.share() != before:
            self._moved = True

    def alive(self, holder: Holder, now: float) -> bool:
        """Notes a heartbeat; False from a life that is not the worker's latest, or that was forgotten."""
        member = self._members.get(holder.worker)
        if member is None or member.holder != holder:
            return False
        self._heard(member, now)
        return True

    def _heard(self, member: _Member, now: float) -> None:
        member.last_s = now
        self._members[member.holder.worker] = self._members.pop(member.holder.worker)

    def remove(self, worker: str) -> None:
        """A worker has said goodbye."""
        if self._members.pop(worker, None) is not None:
            self._moved = True

    def forget(self, now: float) -> None:
        """Strikes out who has been silent for too long."""
        while (first := next(iter(self._members.values()), None)) and now - first.last_s > self._lost_after_s:
            self.lost += 1
            self.remove(first.holder.worker)

    def begin_again(self) -> None:
        """There is more to measure: what a worker could not propose before says nothing of it."""
        for member in self._members.values():
            member.exhausted_at, member.late = -1, False

    def shares(self, worker: str, context: str, now: float) -> Shares:
        """The workers of `context` and their speeds as `worker` has to know them, in half octaves so that shares do
        not move all the time."""
        self._renew(now)
        if context not in self._shares:
            here = {name: m.speed for name, m in self._members.items() if m.context == context}
            typical = _typical(here.values())
            self._shares[context] = shares_of(
                {name: _half_octave((speed or typical) / typical) for name, speed in here.items()}
            )
        groups = self._shares[context]
        return groups[group_of(worker, len(groups))]

    def _renew(self, now: float) -> None:
        """Drops what was computed from earlier members; in a large fleet, where that is costly, not at every change."""
        if self._moved and now >= self._renew_at:
            self._moved, self._shares, self._pace = False, {}, None
            self._renew_at = now + RENEW_S * (len(self._members) > LARGE)

    def exhausted(self, news: int) -> bool:
        """Whether everybody knows all `news` and can propose nothing more."""
        return bool(self._members) and all(m.exhausted_at >= news for m in self._members.values())

    @property
    def late(self) -> bool:
        """Whether somebody could propose more if there were more time."""
        return any(member.late for member in self._members.values())

    def in_time(self, worker: str, work: float, now: float) -> int:
        """How many leases `worker` can measure until the fleet is done with `work` plans; at least one, apart from a
        worker that is `TOO_SLOW`, for which the others would wait: it needs twice the time."""
        self._renew(now)
        if self._pace is None:
            speeds = [member.speed for member in self._members.values()]
            typical = _typical(speeds)
            self._pace = typical, sum(speed or typical for speed in speeds)
        typical, fleet = self._pace
        member = self._members.get(worker)
        own = member.speed if member is not None and member.speed > 0 else typical
        most = work / max(fleet, own) * own
        return int(most / 2) if own * TOO_SLOW <= typical else max(int(most + 0.5), 1)


def _typical(speeds: Iterable[float]) -> float:
    """The median of the speeds that are known."""
    return median_high([speed for speed in speeds if speed > 0] or [1.0])


def _half_octave(ratio: float) -> float:
    return float(2.0 ** (round(2 * math.log2(min(max(ratio, 1 / 64), 64.0))) / 2))
