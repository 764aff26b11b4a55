"""Compiled or not, the search answers the same; compiling is one process's work, and ends with the one it is for."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from synthetic import Table

from model_opt.search import Decision, Forbid, Limit, Measurement, Objective, Searcher, SearchSpace
from model_opt.search import planner as planning
from model_opt.search.compiled import PLAIN, Kernels, load_compiled, twins

SPACES = {
    "large, with rules": SearchSpace(
        [Decision(f"d{i}", "012345"[: 3 + i % 4], ordered=i % 2 == 0) for i in range(9)],
        [Forbid({"d0": ["1"], "d3": ["2", "3"]}), Forbid({"d8": ["0"], "d1": ["0"], "d2": ["4"]})],
    ),
    "small": Table(0, decisions=4).space,
}
SETTLED = (
    "from model_opt.search.compiling import COMPILER, start_compiling\nstart_compiling()\nCOMPILER._thread.join()\n"
)
"""A program that waits for its kernels."""


def course(space: SearchSpace, kernels: Kernels, plans: int) -> list[object]:
    """All that a search proposes, expects and sees in its tree."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "kernels", lambda: kernels)
        objective = Objective(metric="x", limits=(Limit(metric="y", bound=0.5),))
        searcher, seen = Searcher(space, objective, budget=plans, seed=3, noise={"x": 0.01}), []
        while (proposal := searcher.ask()) is not None:
            seen += [proposal, searcher.tree_summary()]
            value = sum((i + 1) * int(choice.option) for i, choice in enumerate(proposal.plan.choices))
            samples = {"x": (float(np.cos(value)) + value,), "y": (1 / (1 + value),)}
            searcher.tell(Measurement(plan=proposal.plan, samples=samples))
        return seen


@pytest.mark.parametrize("name", SPACES)
def test_plain_and_compiled_kernels_answer_the_same_to_the_last_bit(name: str) -> None:
    assert course(SPACES[name], PLAIN, 30) == course(SPACES[name], load_compiled(), 30)


def test_the_search_needs_no_other_signature_than_the_one_that_is_compiled_beforehand() -> None:
    course(SPACES["large, with rules"], load_compiled(), 24)
    assert {name: len(twins()[name].signatures) for name in ("enlist_all", "mask_options", "step")} == {
        "enlist_all": 1,
        "mask_options": 1,
        "step": 1,
    }


def test_a_search_begins_at_once_and_loads_numba_only_in_the_background(tmp_path: Path) -> None:
    """With nothing compiled the first plans are proposed before anything is."""
    program = """
        import sys
        from model_opt.search import Decision, Measurement, Objective, Searcher, SearchSpace
        space = SearchSpace([Decision(f"d{i}", "0123") for i in range(8)])
        searcher = Searcher(space, Objective(metric="x"), budget=40)
        for _ in range(12):
            plan = searcher.ask().plan
            searcher.tell(Measurement(plan=plan, samples={"x": (float(len(plan.choices)),)}))
        print(searcher.tree_summary() != (), "numba" in sys.modules)
    """
    done = run(program, tmp_path)
    assert (done.stdout.split(), done.stderr) == (["True", "False"], "")


def test_one_process_compiles_for_all_that_wait(tmp_path: Path) -> None:
    program = SETTLED + "from model_opt.search.compiled import PLAIN\nprint(COMPILER.kernels is not PLAIN)"
    both = [begin(program, tmp_path) for _ in range(2)]
    assert [process.communicate(timeout=240)[0] for process in both] == ["True\n", "True\n"]
    compiled = [path.name.split("-")[0] for path in tmp_path.rglob("*.nbc")]
    assert compiled and len(compiled) == len(set(compiled))  # numba numbers what is compiled twice
    assert len(list(tmp_path.glob("*.compiled"))) == 1


def test_the_process_that_compiles_ends_with_the_one_it_compiles_for(tmp_path: Path) -> None:
    program = """
        import time
        from model_opt.search.compiling import COMPILER, start_compiling
        start_compiling()
        while COMPILER.pid is None:
            time.sleep(0.01)
        print(COMPILER.pid, flush=True)
        time.sleep(600)
    """
    with begin(program, tmp_path) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert soon(lambda: os.getpriority(os.PRIO_PROCESS, pid) == 19)
        parent.kill()
    assert soon(lambda: not lives(pid))


def test_a_search_outlives_the_process_that_compiles_for_it(tmp_path: Path) -> None:
    """Killed as often as it is started, it leaves the kernels plain."""
    program = f"""
        import os, signal, threading, time
        from model_opt.search.compiled import PLAIN
        from model_opt.search.compiling import COMPILER, start_compiling
        start_compiling()
        while COMPILER._thread.is_alive():
            if COMPILER.pid is not None:
                os.kill(COMPILER.pid, {signal.SIGKILL})
            time.sleep(0.01)
        print(COMPILER.kernels is PLAIN)
    """
    done = run(program, tmp_path)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_without_a_folder_that_can_be_written_the_kernels_stay_plain() -> None:
    """No temporary folder, no home, a read-only package: not even root can write to /proc."""
    nowhere = Path("/proc/nothing")
    places = f"""
        import os, tempfile
        os.environ.update(HOME="{nowhere}", XDG_CACHE_HOME="{nowhere}")
        tempfile._candidate_tempdir_list = lambda: ["/proc"]
        from model_opt.search import compiled
        compiled.tree.__file__ = "{nowhere}/tree.py"
    """
    told = "print(COMPILER.kernels is compiled.PLAIN, compiled.mark())"
    done = run(textwrap.dedent(places) + SETTLED + told, nowhere)
    assert (done.stdout, done.stderr) == ("True None\n", "")


def begin(program: str, cache: Path) -> "subprocess.Popen[str]":
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )  # fmt: skip


def run(program: str, cache: Path) -> "subprocess.CompletedProcess[str]":
    with begin(program, cache) as process:
        out, err = process.communicate(timeout=240)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def soon(holds: Callable[[], bool]) -> bool:
    """Whether something comes about within a minute."""
    return any(holds() or time.sleep(0.1) for _ in range(600))


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
