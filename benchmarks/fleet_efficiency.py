"""How much of a fleet's time is spent measuring, and what a measured plan costs beside it.

efficiency = seconds inside evaluators / (workers x time from first grant to last settlement); evaluators time
themselves. They sleep, lognormal around 0.5 s; one worker takes five times as long. With 16 workers everything is real:
Ray, a child process a worker, a tree and a surrogate each. With 64 the evaluators are threads and proposals are random,
so that one machine can hold them. distinct_share is that of plans measured once, by 8, 16 and 64 workers with a tree
each, ten plans a worker, all in one process: two cores hold 64 trees of 640 plans in a minute, of 1,280 not in ten. The
overhead of a plan is worker time outside of evaluators; two workers of one speed, beside Ray Tune and Optuna with two.

`python benchmarks/fleet_efficiency.py [--quick] [--json] [--only ray|threads|distinct|overhead]`
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import cloudpickle
import numpy as np

from model_opt.actors import searches
from model_opt.fleet.coordinator_service import CoordinatorService
from model_opt.fleet.coordinator_state import FleetRules
from model_opt.fleet.leases import Holder
from model_opt.fleet.proposer import Proposals, Proposer, Search, TreeProposer
from model_opt.fleet.submission import Placement, Submission
from model_opt.fleet.worker_loop import WorkerLoop
from model_opt.fleet.worker_state import WorkerState
from model_opt.search.evaluator import Description, Measurement, Outcome, Phase, Purpose
from model_opt.search.objective import Objective
from model_opt.search.ownership import Shares
from model_opt.search.plan import Plan
from model_opt.search.space import Decision, SearchSpace

SPACE = SearchSpace([Decision(f"d{i}", tuple("012345"), ordered=True) for i in range(10)])
OBJECTIVE = Objective(metric="latency_ms")
TYPICAL_S, SPREAD, SLOW = 0.5, 0.4, 5.0


def sleep_s(plan: Plan, typical_s: float) -> float:
    return float(typical_s * np.exp(np.random.default_rng(int(plan.key[:8], 16)).normal(0.0, SPREAD)))


def slept(plan: Plan, seconds: float) -> Measurement:
    """Sleeps, and says how long that took."""
    began = time.perf_counter()
    time.sleep(seconds)
    strength = sum(int(choice.option) for choice in plan.choices)
    return Measurement(
        plan=plan, samples={"latency_ms": (100.0 - strength,)}, seconds={"time": time.perf_counter() - began}
    )


@dataclass
class Sleeper:
    """Sleeps as long as its plan says; whoever claims the file `slow` first is the slow one."""

    folder: Path
    typical_s: float
    slow: float

    def __post_init__(self) -> None:
        try:
            (self.folder / "slow").touch(exist_ok=False)
            self.factor = self.slow
        except FileExistsError:
            self.factor = 1.0

    def describe(self) -> Description:
        return Description(context="made up")

    def measure(self, plan: Plan, purpose: Purpose, phase: Phase) -> Measurement:
        phase("time")
        return slept(plan, self.factor * sleep_s(plan, self.typical_s))


class RandomProposer:
    explores_until = 1 << 30

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def tell(self, outcome: Outcome) -> None:
        """Learns nothing."""

    def propose(
        self, many: int, *, pending: Sequence[Plan], shares: Shares, budget: int, fits: Callable[[Plan], bool]
    ) -> Proposals:
        codes = self._rng.integers(0, SPACE.sizes, size=(many, len(SPACE.sizes)))
        return [(SPACE.decode(row), Purpose.EXPLORE) for row in codes]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished search: its outcomes, and the seconds from the first grant to the last settlement."""

    workers: int
    outcomes: Sequence[Outcome]
    span_s: float

    @property
    def inside_s(self) -> float:
        return sum(outcome.seconds["time"] for outcome in self.outcomes)

    @property
    def efficiency(self) -> float:
        return self.inside_s / (self.workers * self.span_s)

    @property
    def overhead_ms(self) -> float:
        return 1000 * (self.workers * self.span_s - self.inside_s) / len(self.outcomes)

    @property
    def distinct(self) -> float:
        return len({outcome.plan.key for outcome in self.outcomes}) / len(self.outcomes)


def on_ray(workers: int, budget: int, typical_s: float, name: str, *, slow: float) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        request = Submission(
            search=Search(space=SPACE, objective=OBJECTIVE),
            rules=FleetRules(budget=budget, objective=OBJECTIVE, gather=workers, gather_s=300.0),
            placement=Placement(workers=workers, gpus=0.0),
        )
        searches.submit(partial(Sleeper, Path(folder), typical_s, slow), request, name=name, state=f"{folder}/state")
        result = searches.watch(name)
        searches.release(name)
    status = result.status
    span_s = status["last_settled_s"] - status["first_grant_s"]
    return Run(workers=workers, outcomes=result.outcomes, span_s=span_s)


def on_threads(workers: int, budget: int, typical_s: float, propose: Callable[[int, int], Proposer]) -> Run:
    def measure(plan: Plan, purpose: Purpose, factor: float) -> Outcome:
        return slept(plan, factor * sleep_s(plan, typical_s))

    def loop(number: int, service: CoordinatorService) -> WorkerLoop:
        return WorkerLoop(
            WorkerState(Holder(worker=f"w{number}", incarnation="1"), "c"),
            service,
            partial(measure, factor=SLOW if number == 0 else 1.0),
            partial(propose, number),
        )

    with tempfile.TemporaryDirectory() as folder:
        service = CoordinatorService.at(Path(folder), FleetRules(budget=budget, objective=OBJECTIVE, gather=workers))
        threads = [threading.Thread(target=loop(number, service).run) for number in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        status, outcomes = service.status(), [trial.outcome for trial in service.trials()]
        service.close()
    return Run(workers=workers, outcomes=outcomes, span_s=status["last_settled_s"] - status["first_grant_s"])


def with_tree(number: int, budget: int) -> TreeProposer:
    return TreeProposer(f"w{number}", Search(space=SPACE, objective=OBJECTIVE), budget, {})


def at_random(number: int, budget: int) -> RandomProposer:
    return RandomProposer(number)


def timed_ms(run: Callable[[], None], workers: int, plans: int) -> float:
    began = time.perf_counter()
    run()
    return 1000 * workers * (time.perf_counter() - began) / plans


def tune_ms(plans: int, *, reuse: bool) -> float:
    """Ray Tune: trivial trials of a class, two at a time."""
    from ray import tune

    class Trivial(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            pass

        def step(self) -> dict[str, Any]:
            return {"x": 0.0, "done": True}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True

    with tempfile.TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            tune.with_resources(Trivial, {"cpu": 1}),
            param_space={"x": tune.uniform(0, 1)},
            tune_config=tune.TuneConfig(num_samples=plans, max_concurrent_trials=2, reuse_actors=reuse),
            run_config=tune.RunConfig(
                storage_path=folder, verbose=0, checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False)
            ),
        )
        failed: list[Exception] = []
        with contextlib.redirect_stdout(sys.stderr):
            spent_ms = timed_ms(lambda: failed.extend(tuner.fit().errors), 2, plans)
    if failed:
        raise RuntimeError(f"{len(failed)} trials of Ray Tune failed: {failed[0]}")
    return spent_ms


OPTUNA = """
import sys, optuna
optuna.logging.set_verbosity(optuna.logging.ERROR)
study = optuna.load_study(study_name="s", storage=sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
def objective(trial):
    return sum(trial.suggest_int(f"d{i}", 0, 5) for i in range(10))
study.optimize(objective, n_trials=int(sys.argv[2]))
"""


def optuna_ms(plans: int) -> float:
    """Optuna's TPE, two processes on one SQLite file; their start is not counted."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        storage = f"sqlite:///{folder}/study.db"
        optuna.create_study(study_name="s", storage=storage)
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        command = [sys.executable, "-c", OPTUNA, storage, str(plans // 2)]
        processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
        for process in processes:
            process.stdout.readline()

        def go() -> None:
            for process in processes:
                process.stdin.write("\n")
                process.stdin.flush()
            for process in processes:
                process.communicate()

        return timed_ms(go, 2, plans)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=["ray", "threads", "distinct", "overhead"])
    arguments = parser.parse_args()
    cloudpickle.register_pickle_by_value(sys.modules["__main__"])
    quick, only = arguments.quick, arguments.only
    figures: dict[str, float] = {}
    if only in (None, "threads"):
        figures["efficiency_64"] = on_threads(64, 4_000 if quick else 10_000, TYPICAL_S, at_random).efficiency
    if only in (None, "distinct"):
        for workers in (8, 16, 64):
            run = on_threads(workers, (5 if quick else 10) * workers, 0.2, with_tree)
            figures[f"distinct_share_{workers}"] = run.distinct
            print(f"{workers} trees: {run.distinct:.2%} distinct after {run.span_s:.0f} s", file=sys.stderr)
        figures["distinct_share"] = min(value for name, value in figures.items() if "distinct" in name)
    if only in (None, "ray"):
        searches.connect(None, cpus=16)
        run = on_ray(16, 1_000 if quick else 2_000, TYPICAL_S, "sixteen", slow=SLOW)
        figures["efficiency_16"], figures["distinct_share_on_ray"] = run.efficiency, run.distinct
    if only in (None, "overhead"):
        searches.connect(None, cpus=16)
        plans = 100 if quick else 400
        figures["overhead_ms"] = on_ray(2, plans, 0.05, "two", slow=1.0).overhead_ms
        figures["ray_tune_ms"] = tune_ms(25 if quick else 50, reuse=False)
        figures["ray_tune_reuse_ms"] = tune_ms(50 if quick else 100, reuse=True)
        figures["optuna_ms"] = optuna_ms(plans)
    if arguments.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:>20} {value:.4g}")


if __name__ == "__main__":
    main()
