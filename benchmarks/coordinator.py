"""How many settlements a coordinator makes durable in a second, and what it weighs, by the size of fleet and search.

Workers are simulated by their state machines in this process; the coordinator, its journal and its disk are real.
Every settlement is on disk (`synchronous=FULL`) before its worker goes on. With 10,000 workers the simulation shows
what grows: `reply_kb` is the most that one answer weighs on the wire (news, and the shares that ownership needs),
`wire_mb_per_s` what all answers weigh at the rate reached, `core_us` the processor time of a settlement.
`python benchmarks/coordinator.py [--quick] [--json] [--folder DIR]`: DIR should be on the disk that a real coordinator
would use.
"""

import argparse
import json
import pickle
import random
import resource
import tempfile
import time
from pathlib import Path

from model_opt.fleet.coordinator_service import CoordinatorService
from model_opt.fleet.coordinator_state import FleetRules
from model_opt.fleet.leases import Holder
from model_opt.fleet.worker_state import WorkerState
from model_opt.search.evaluator import Measurement, Purpose
from model_opt.search.objective import Objective
from model_opt.search.plan import Choice, Plan

DECISIONS = 8


def draw(rng: random.Random) -> Plan:
    return Plan(tuple(Choice(decision=f"d{i}", option=str(rng.randrange(1, 20))) for i in range(DECISIONS)))


def measured(plan: Plan, rng: random.Random) -> Measurement:
    samples = {name: tuple(rng.gauss(1, 0.1) for _ in range(7)) for name in ("log_speedup", "accuracy_drop")}
    return Measurement(plan=plan, samples=samples, seconds={"time": 1.0})


def fleet_round(service: CoordinatorService, workers: list[WorkerState], rng: random.Random) -> tuple[bool, int]:
    """All workers ask at once; what they were granted is "measured" before the next round. The end, and the bytes of
    one answer."""
    asked = []
    for worker in workers:
        proposals = [(draw(rng), Purpose.EXPLORE) for _ in range(3)]
        asked.append(service.submit(worker.question(proposals=proposals, wanted=2)))
    over, size = 0, 0
    for worker, answer in zip(workers, asked, strict=True):
        reply = answer.result()
        if not size:
            size = len(pickle.dumps(reply))
        worker.hear(reply)
        over += reply.ending is not None
        if (grant := worker.start()) is not None:
            worker.finish(measured(grant.plan, rng), 1.0)
    return over > 0, size


def one_fleet(many: int, budget: int, folder: Path) -> dict[str, float]:
    rng = random.Random(many)
    rules = FleetRules(budget=budget, objective=Objective(metric="log_speedup", maximize=True))
    service = CoordinatorService.at(folder / f"{many}-{budget}", rules)
    workers = [WorkerState(Holder(worker=f"w{i}", incarnation="1"), "c") for i in range(many)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, spent, sizes = time.perf_counter(), time.process_time(), []
    over = False
    while not over:
        over, size_bytes = fleet_round(service, workers, rng)
        sizes.append(size_bytes)
    span, spent = time.perf_counter() - began, time.process_time() - spent
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
        "reply_kb": max(sizes) / 1e3,
        "wire_mb_per_s": max(sizes) * budget / span / 1e6,
        "core_us": 1e6 * spent / budget,
    }


def reopen_s(folder: Path, budget: int) -> float:
    """Seconds that a restarted coordinator needs until it answers again."""
    rules = FleetRules(budget=budget, objective=Objective(metric="log_speedup", maximize=True))
    began = time.perf_counter()
    CoordinatorService.at(folder, rules).close()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    sizes = [(16, 2000), (64, 4000), (256, 10_000), (10_000, 30_000)]
    if arguments.quick:
        sizes = [(16, 500), (64, 1000), (256, 2000), (10_000, 20_000)]
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
