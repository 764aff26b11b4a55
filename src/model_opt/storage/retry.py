"""Trying again: exponential backoff with full jitter (Brooker, "Exponential backoff and jitter"), under a deadline."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

from model_opt.errors import StoreUnavailable

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How long and how often to try. Clock, sleep and random numbers can be passed in."""

    deadline_s: float = 10.0
    first_wait_s: float = 0.05
    longest_wait_s: float = 2.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    random: Random = field(default_factory=Random)

    def call(self, action: Callable[[], T]) -> T:
        """The result of `action`, tried again while it raises `StoreUnavailable` and the deadline is ahead.

        The last `StoreUnavailable` is raised on; everything else at once.
        """
        end = self.clock() + self.deadline_s
        attempt = 0
        while True:
            try:
                return action()
            except StoreUnavailable as error:
                longest = min(self.longest_wait_s, self.first_wait_s * 2**attempt)
                wait = self.random.uniform(0, longest)
                if self.clock() + wait >= end:
                    raise
                _log.debug("trying again in %.2f s: %s", wait, error)
                self.sleep(wait)
                attempt += 1
