"""Timing beside other programs: what they disturb is set aside, and where everything is it is said."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from model_opt.compression.evaluation.other_programs import TASKS, OtherPrograms, RunQueue
from model_opt.compression.evaluation.time_pair import FEWEST_BLOCKS, _paired, _Side, time_pair

told = pytest.mark.skipif(not TASKS.exists(), reason="this system does not say how long threads wait for a processor")


@contextmanager
def crowd(each: int):
    """`each` programs that spin on every processor of this process."""
    processors = sorted(os.sched_getaffinity(0)) * each
    spin = "import os, sys; os.sched_setaffinity(0, [int(sys.argv[1])])\nwhile True: pass"
    spinning = [subprocess.Popen([sys.executable, "-c", spin, str(number)]) for number in processors]
    try:
        time.sleep(0.5)
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def busy_loop(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


@told
def test_waiting_for_a_processor_is_seen():
    with RunQueue() as queue, crowd(3):
        assert queue.known
        others, before = OtherPrograms(), queue.waited_s()
        busy_loop(0.6)
        assert queue.waited_s() - before > 0.1  # a fair share is a quarter of the time
        assert others.share() > 0.2


@told
def test_what_others_disturb_is_set_aside():
    torch.set_num_threads(1)
    model = nn.Sequential(*(nn.Linear(128, 128) for _ in range(4))).eval()
    with crowd(3):
        paired = time_pair(model, model, torch.randn(8, 128), blocks=5, at_most_s=0.5, patience_s=0.5)
    assert paired.set_aside > 0 or not paired.quiet


def side(*turns):
    return _Side(model=nn.Identity(), calls=1, settles=False, turns=list(turns))


def test_quiet_turns_make_the_figures_where_there_are_enough():
    paired = _paired([side(*[(2.0, 0.0), (90.0, 0.9)] * 15), side(*[(1.0, 0.0), (50.0, 0.9)] * 15)], 5, 7, 0.6)
    assert paired.quiet and len(paired.log_ratios) == FEWEST_BLOCKS
    assert paired.baseline_ms.tolist() == [2.0] * 3 and paired.plan_ms.tolist() == [1.0] * 3
    assert paired.set_aside == pytest.approx(0.5)


def test_where_hardly_a_turn_is_quiet_it_is_said_and_those_disturbed_least_are_told():
    disturbed = side(*[(90.0, 0.9), (4.0, 0.2)] * 15)
    paired = _paired([disturbed, side(*[(1.0, 0.0)] * 30)], 5, 7, 0.6)
    assert not paired.quiet and paired.baseline_ms.tolist() == [4.0] * 3


def test_threads_that_wait_for_each_other_are_nobodys_disturbance():
    paired = _paired([side(*[(3.0, 0.5)] * 15), side(*[(1.0, 0.4)] * 15)], 5, 7, 0.0)
    assert paired.quiet and paired.set_aside == 0.0 and len(paired.log_ratios) == FEWEST_BLOCKS
