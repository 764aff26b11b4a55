"""Seconds that look like wall time and never jump: what leases, deadlines and silences are told by."""

import time


class SteadyClock:
    """Wall time when it was made, and from then on what a monotonic clock adds: setting the system's clock changes
    nothing, and while a machine sleeps no time passes."""

    def __init__(self) -> None:
        self._ahead_s = time.time() - time.monotonic()

    def __call__(self) -> float:
        """Seconds since 1970, about."""
        return time.monotonic() + self._ahead_s
