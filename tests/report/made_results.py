"""Results of real searches over a made-up problem: speed, size and accuracy by formula, so that nothing is measured."""

import math
import random
from collections.abc import Mapping
from dataclasses import asdict, replace

from model_opt.autotuner.engine import Found, trial_of
from model_opt.autotuner.figures import Figure
from model_opt.autotuner.finish import pareto_front
from model_opt.autotuner.result import CompressionResult
from model_opt.compression.technique import techniques_of
from model_opt.search.conclusion import conclude
from model_opt.search.evaluator import Failure, Measurement, Outcome, Purpose, Reason
from model_opt.search.objective import Limit, Objective
from model_opt.search.plan import Plan
from model_opt.search.searcher import Searcher
from model_opt.search.space import Decision, SearchSpace
from model_opt.search.trial import Trial, predicted_of

SPACE = SearchSpace(
    [
        Decision("clean", ["none", "fused"]),
        Decision("prune", ["0", "0.25", "0.5", "0.7"], True),
        Decision("low_rank", ["0", "0.75", "0.5"], True),
        Decision("precision", ["fp32", "bf16", "int8_static"]),
        Decision("runtime", ["torch", "openvino", "onnxruntime", "aot_inductor"]),
    ]
)
OBJECTIVE = Objective(
    metric="log_speedup",
    maximize=True,
    limits=(Limit(metric="accuracy_drop", bound=0.02),),
    tie=("log_size_ratio", True),
)
GAINS = {
    "prune": {"0.25": 0.15, "0.5": 0.35, "0.7": 0.55},
    "low_rank": {"0.75": 0.05, "0.5": 0.12},
    "precision": {"bf16": 0.1, "int8_static": 0.45},
    "runtime": {"openvino": 0.6, "onnxruntime": 0.35, "aot_inductor": 0.3},
    "clean": {"fused": 0.12},
}
LOSSES = {
    "prune": {"0.25": 0.004, "0.5": 0.011, "0.7": 0.06},
    "low_rank": {"0.75": 0.003, "0.5": 0.012},
    "precision": {"bf16": 0.0005, "int8_static": 0.005},
}
SHRINKS = {"prune": {"0.25": 0.28, "0.5": 0.68, "0.7": 1.1}, "precision": {"bf16": 0.69, "int8_static": 1.36}}


def measured(plan: Plan, rng: random.Random) -> Outcome:
    seconds = {"prepare": rng.uniform(0.5, 3.0), "time": rng.uniform(0.8, 1.6), "accuracy": rng.uniform(0.2, 0.6)}
    if plan.option("runtime") == "aot_inductor" and plan.option("precision") == "bf16":
        return Failure(
            plan=plan, reason=Reason.ILLEGAL, message="aot_inductor has no bf16 kernels here", seconds=seconds
        )
    samples = {
        "log_speedup": tuple(_sum(GAINS, plan) + rng.gauss(0, 0.02) for _ in range(5)),
        "log_size_ratio": (_sum(SHRINKS, plan),),
        "accuracy_drop": (_sum(LOSSES, plan),),
        "accuracy_error": (0.002,),
    }
    return Measurement(plan=plan, samples=samples, seconds=seconds)


def _sum(table: Mapping[str, Mapping[str, float]], plan: Plan) -> float:
    return sum(table.get(choice.decision, {}).get(choice.option, 0.0) for choice in plan.choices)


def made_result(budget: int = 40, seed: int = 0, workers: int = 0) -> CompressionResult:
    """A search of `budget` plans; with `workers` it says that so many took turns."""
    rng = random.Random(seed)
    noise = {"log_speedup": 0.02**2, "accuracy_drop": 0.0}
    searcher = Searcher(SPACE, OBJECTIVE, budget=budget, seed=seed, noise=noise, evaluations=150)
    observed: list[Trial] = []
    clocks = dict.fromkeys((f"node{i // 2}-{i % 2}" for i in range(workers)) if workers else ["this machine"], 0.0)
    while (proposal := searcher.ask()) is not None:
        outcome = measured(proposal.plan, rng)
        searcher.tell(outcome)
        who = min(clocks, key=lambda name: clocks[name])
        clocks[who] += sum(outcome.seconds.values()) + 0.1
        seen = replace(trial_of(outcome, Purpose(proposal.purpose)), at_s=clocks[who], worker=who if workers else None)
        observed.append(replace(seen, predicted=predicted_of(proposal.expected)))
    found = Found(conclusion=conclude(searcher, observed), observed=tuple(observed), ended="budget")
    return _result(found, workers)


def _result(found: Found, workers: int) -> CompressionResult:
    plan = found.conclusion.best.plan
    means = next(trial for trial in found.observed if trial.plan == plan and trial.metrics).metrics
    speed, drop = math.exp(means["log_speedup"]), means["accuracy_drop"]
    counts: dict[str, int] = {}
    for seen in found.observed:
        counts[seen.worker or ""] = counts.get(seen.worker or "", 0) + 1
    fleet = {"name": "night", "budget": len(found.observed), "settled": len(found.observed), "measured_by": counts}
    return CompressionResult(
        figures={
            "speedup": Figure(value=speed, low=0.9 * speed, high=1.1 * speed),
            "compression_ratio": Figure.exact(math.exp(means["log_size_ratio"])),
            "accuracy_drop": Figure(value=drop, low=drop - 0.004, high=drop + 0.004),
            "latency_ms": Figure(value=2.0, low=1.9, high=2.2),
        },
        plan=plan,
        techniques=techniques_of(plan),
        feasible=found.conclusion.best.feasible,
        constraints={"max_accuracy_drop": 0.02},
        method="hybrid",
        accuracy_source="labelled data",
        baseline={"latency_ms": 2.0 * speed, "size_bytes": 4_200_000, "accuracy": 0.973},
        context={"device": "a made-up processor", "batch": 8, "threads": 1, "key": "0" * 32},
        signature={"family": "cnn", "key": "1" * 32},
        pareto=pareto_front(found),
        observations=found.observed,
        seconds={"search": 60.0, "total": 75.0},
        ended=found.ended,
        notes=("timed with an allocator that keeps freed memory, for the original and the optimised model alike",),
        knowledge={
            "rows": 31,
            "samples": 120,
            "signatures": {"ab" * 16: 0.98, "cd" * 16: 0.91},
            "origins": ["3f" * 32, "9a" * 32],
            "exact": False,
        },
        importance=found.conclusion.importance,
        tree=tuple(asdict(option) for option in found.conclusion.tree),
        fleet=fleet if workers else {},
    )
