"""How often somebody may ask: token buckets, of a bounded number of names."""

import time
from collections import OrderedDict
from collections.abc import Callable

_NAMES = 10_000


class Rates:
    """`per_s` requests a second for each name, `burst_s` seconds' worth of them at once. Not for several threads."""

    def __init__(self, per_s: float, burst_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` is in seconds."""
        self._per_s, self._most, self._clock = per_s, max(per_s * burst_s, 1.0), clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, name: str, *, count: bool = True) -> float:
        """0 where `name` may ask now, which is counted unless told otherwise; else the seconds until it may."""
        now = self._clock()
        tokens, since = self._buckets.pop(name, (self._most, now))
        tokens = min(self._most, tokens + (now - since) * self._per_s)
        allowed = tokens >= 1
        self._buckets[name] = (tokens - 1 if allowed and count else tokens, now)
        if len(self._buckets) > _NAMES:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - tokens) / self._per_s
