"""How many settlements a coordinator makes durable in a second, and what it weighs, by the size of fleet and search.

Workers are simulated by their state machines in this process; the coordinator, its journal and its disk are real.
Every settlement is on disk (`synchronous=FULL`) before its worker goes on. `python benchmarks/coordinator.py [--quick]
[--json] [--folder DIR]`: DIR should be on the disk that a real coordinator would use.
"""

import argparse
import json
import random
import resource
import tempfile
import time
from pathlib import Path

from model_opt.actors.coordinator_state import Rules
from model_opt.actors.leases import Holder
from model_opt.actors.service import CoordinatorService
from model_opt.actors.worker_state import WorkerState
from model_opt.search.evaluator import Measurement, Purpose
from model_opt.search.objective import Objective
from model_opt.search.plan import Choice, Plan

DECISIONS = 8


def draw(rng: random.Random) -> Plan:
    return Plan(tuple(Choice(decision=f"d{i}", option=str(rng.randrange(1, 20))) for i in range(DECISIONS)))


def measured(plan: Plan, rng: random.Random) -> Measurement:
    samples = {name: tuple(rng.gauss(1, 0.1) for _ in range(7)) for name in ("log_speedup", "accuracy_drop")}
    return Measurement(plan=plan, samples=samples, seconds={"time": 1.0})


def fleet_round(service: CoordinatorService, workers: list[WorkerState], rng: random.Random) -> int:
    """All workers ask at once; what they were granted is "measured" before the next round."""
    asked = []
    for worker in workers:
        proposals = [(draw(rng), Purpose.EXPLORE) for _ in range(3)]
        asked.append(service.submit(worker.question(proposals=proposals, wanted=2)))
    over = 0
    for worker, answer in zip(workers, asked, strict=True):
        reply = answer.result()
        worker.hear(reply)
        over += reply.ending is not None
        if (grant := worker.start()) is not None:
            worker.finish(measured(grant.plan, rng), 1.0)
    return over


def one_fleet(many: int, budget: int, folder: Path) -> dict[str, float]:
    rng = random.Random(many)
    rules = Rules(budget=budget, objective=Objective(metric="log_speedup", maximize=True))
    service = CoordinatorService.at(folder / f"{many}-{budget}", rules)
    workers = [WorkerState(Holder(worker=f"w{i}", incarnation="1"), "c") for i in range(many)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    while not fleet_round(service, workers, rng):
        pass
    span = time.perf_counter() - began
    status = service.status()
    service.close()
    assert status["settled"] == budget, status
    size = sum(path.stat().st_size for path in (folder / f"{many}-{budget}").iterdir())
    return {
        "workers": many,
        "simulations": budget,
        "settlements_per_s": budget / span,
        "memory_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        "disk_mb": size / 1e6,
    }


def reopen_s(folder: Path, budget: int) -> float:
    """Seconds that a restarted coordinator needs until it answers again."""
    rules = Rules(budget=budget, objective=Objective(metric="log_speedup", maximize=True))
    began = time.perf_counter()
    CoordinatorService.at(folder, rules).close()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    sizes = [(16, 500), (64, 1000)] if arguments.quick else [(16, 2000), (64, 4000), (256, 10_000)]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        fleets = [one_fleet(many, budget, Path(name)) for many, budget in sizes]
        many, budget = sizes[-1]
        again = reopen_s(Path(name) / f"{many}-{budget}", budget)
    figures = {"deltas_per_s": max(fleet["settlements_per_s"] for fleet in fleets), "fleets": fleets, "reopen_s": again}
    if arguments.json:
        print(json.dumps(figures))
        return
    for fleet in fleets:
        print("  ".join(f"{name} {value:.6g}" for name, value in fleet.items()))
    print(f"a restart with {budget} results takes {again:.2f} s")


if __name__ == "__main__":
    main()
