import signal
import threading
import time

import pytest

from model_opt.compression.techniques.time_limit import TookTooLong, at_most


def spin(seconds: float) -> int:
    until, count = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        count += 1
    return count


def test_code_that_does_not_end_is_stopped():
    began = time.monotonic()
    with pytest.raises(TookTooLong, match=r"longer than 0\.1 s"), at_most(0.1):
        spin(30)
    assert time.monotonic() - began < 10


def test_what_ends_in_time_is_left_alone_and_so_are_other_timers():
    before = signal.getsignal(signal.SIGALRM)
    left, _ = signal.setitimer(signal.ITIMER_REAL, 200)
    with at_most(100):
        assert spin(0.05)
    assert 100 < signal.setitimer(signal.ITIMER_REAL, left)[0] <= 200
    assert signal.getsignal(signal.SIGALRM) is before


def test_other_threads_have_no_limit():
    counted = []
    thread = threading.Thread(target=lambda: counted.append(_limited()))
    thread.start()
    thread.join()
    assert counted and counted[0]


def _limited() -> int:
    with at_most(0.01):
        return spin(0.1)
