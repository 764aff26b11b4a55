"""Time is told by clocks that nobody can set; wall time stands only where people read it, or a file is dated."""

import re
from pathlib import Path

import pytest

from model_opt.fleet import steady_clock
from model_opt.fleet.steady_clock import SteadyClock

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "model_opt"
READ_BY_PEOPLE = {
    "actors/searches.py": 1,  # a search's end, told to another machine
    "autotuner/progress_log.py": 1,
    "federation/last_heard.py": 1,
    "federation/recall.py": 1,
    "fleet/steady_clock.py": 1,
    "hub/audit.py": 1,
    "report/view.py": 1,
}


def test_wall_time_is_asked_only_where_people_read_it_or_machines_compare_dates():
    found = {}
    for path in PACKAGE.rglob("*.py"):
        count = len(re.findall(r"time\.time(?:_ns)?\(\)", path.read_text()))
        if count:
            found[str(path.relative_to(PACKAGE))] = count
    assert found == READ_BY_PEOPLE


@pytest.mark.parametrize("step_s", [-3600.0, 3600.0])
def test_setting_the_clock_changes_nothing(monkeypatch, step_s):
    clock = SteadyClock()
    before = clock()
    real = steady_clock.time.time
    monkeypatch.setattr(steady_clock.time, "time", lambda: real() + step_s)
    assert 0.0 <= clock() - before < 60.0
