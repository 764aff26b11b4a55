"""A driver of one search: submits it, says its status line by line, waits until all is in the store, releases it.

python -m chaotic.driver ADDRESS NAME STATE STORE FOLDER BUDGET [release]
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from chaotic.misbehaving import Misbehaving
from made_up import OBJECTIVE, SPACE
from model_opt.actors import searches
from model_opt.actors.cluster import connect
from model_opt.fleet.coordinator_state import FleetRules
from model_opt.fleet.proposer import Search
from model_opt.fleet.submission import Placement, Sharing, Submission
from model_opt.measuring.deadlines import Deadlines
from model_opt.search.model_signature import Family, ModelSignature

SIGNATURE = ModelSignature(family=Family.CNN, parameters=10, layers=2, operators={"linear": 2}, stages=())
TYPICAL_S, LEASE_S, TIME_S, FLUSHED_S = 0.15, 3.0, 5.0, 90.0
SHOWN = ("settled", "budget", "term", "expired", "lost_workers", "failures", "ending", "trouble", "pid")
SHOWN += ("unflushed", "flush_error", "flush_lag_s", "restored")


def say(kind: str, value: Any) -> None:
    print(json.dumps({kind: value}), flush=True)


def main() -> None:
    address, name, state, store, folder, budget = sys.argv[1:7]
    connect(address)
    if sys.argv[7:] == ["release"]:
        searches.release(name, address=address)
        return
    sharing = Sharing(store=store, signature=SIGNATURE, origin=name)
    request = Submission(
        search=Search(space=SPACE, objective=OBJECTIVE),
        rules=FleetRules(budget=int(budget), objective=OBJECTIVE, lease_s=LEASE_S),
        placement=Placement(workers=2),
        deadlines=Deadlines(time_s=TIME_S),
        sharing=sharing,
        subject=name,
    )
    made = partial(Misbehaving, TYPICAL_S, Path(folder))
    searches.submit(made, request, name=name, address=address, state=state)
    searches.watch(name, address=address, on_progress=lambda status: say("status", {key: status[key] for key in SHOWN}))
    say("waiting", "for the store")
    late = searches.flushed(name, address=address, timeout_s=FLUSHED_S)
    result = searches.result(name, address=address)
    rows = {row.plan.key: row.moments["latency_ms"].n for row in result.rows}
    status = {key: result.status[key] for key in SHOWN}
    searches.release(name, address=address)
    say("end", {"ending": result.ending, "late": late, "rows": rows, "status": status})


if __name__ == "__main__":
    main()
