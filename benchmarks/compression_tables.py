"""Measures every plan of six small networks' search spaces, so that searches can be compared without measuring again.

    python benchmarks/compression_tables.py measure [--seconds 300] [--only NAME] [--work out/tables]
    python benchmarks/compression_tables.py repeat [--only NAME] [--work out/tables]
    python benchmarks/compression_tables.py pack

`measure` goes on where it stopped, and ends after `--seconds`; give it one processor and one thread. Plans whose
timings were disturbed are measured again, up to three times; the steadiest counts. `repeat` measures 30 plans once
more in another process: a figure is less sure than the blocks of one process show, and the table keeps its standard
deviation from one to another as its `error`. `pack` writes `benchmarks/data/NAME.npz`, which `plan_tables.py` reads.

The space is the product's own for the network, with layer fusion always on and without what takes minutes to prepare
(compilers, distillation); for convolutional networks with pruning per stage in place of one ratio for the whole model,
and one share of the rank. Batch 8; accuracy on 3,112 images that nothing was fitted or trained on.
"""

import argparse
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from model_opt.search import encoding
from model_opt.search.evaluator import Purpose
from model_opt.search.plan import Plan
from model_opt.search.space import SearchSpace

BATCH, ROWS_AT_ONCE = 8, 100
BLOCKS = 4
STEADY, TRIES = 0.05, 3
"""The standard deviation of log_speedup over a plan's blocks above which it is measured again, so often at most."""
REPEATED = 30
"""Plans that are measured once more."""
EXCLUDED = ("distil", "torch_compile", "aot_inductor")
RANKS = ("0", "0.5")
"""Options of low rank where pruning is decided for each of three stages: with all of them there are 1,792 plans."""


def space_of(model: Any) -> SearchSpace:
    from model_opt.compression.machine import inspect
    from model_opt.compression.sign_model import sign_model
    from model_opt.compression.space import build_space
    from model_opt.compression.stages import stages

    staged = bool(stages(model)) and not hasattr(model, "blocks")
    freeze = {"clean": "fused"} | ({"prune": "0"} if staged else {})
    space = build_space(model, sign_model(model), inspect("cpu"), exclude=EXCLUDED, freeze=freeze)
    if not staged:
        return space
    decisions = [replace(one, options=RANKS) if one.name == "low_rank" else one for one in space.decisions]
    return replace(space, decisions=decisions)


def every_plan(space: SearchSpace) -> list[Plan]:
    """All plans that the space allows; those that share a structure follow one another."""
    searched = encoding.Encoding(space)
    grid = np.stack(np.meshgrid(*map(np.arange, searched.sizes), indexing="ij"), -1).reshape(-1, len(searched.sizes))
    return [searched.decode(codes) for codes in grid[searched.allowed(grid)]]


def evaluator_of(name: str, work: Path) -> Any:
    from table_networks import trained

    from model_opt.compression.evaluation.evaluator import CompressionEvaluator, Task

    model, data = trained(name, work)
    images, classes = data["held_out"]
    task = Task(
        model=model,
        example=images[:BATCH].clone(),
        fit=list(data["fit"][0].split(32)),
        held_out=list(images.split(ROWS_AT_ONCE)),
        labels=list(classes.split(ROWS_AT_ONCE)),
        threads=1,
        explore_blocks=BLOCKS,
    )
    return model, CompressionEvaluator(task)


def measured(evaluator: Any, plan: Plan) -> dict[str, Any]:
    """One plan's samples, or why it failed, with the seconds it took."""
    began = time.monotonic()
    try:
        outcome = evaluator.measure(plan, Purpose.EXPLORE, lambda phase: None)
        row = {name: list(values) for name, values in outcome.samples.items()}
    except Exception as error:
        row = {"failure": f"{type(error).__name__}: {error}"[:300]}
    return {"plan": _chosen(plan), "seconds": time.monotonic() - began} | row


def read_rows(path: Path) -> list[dict[str, Any]]:
    """What was measured so far; a last line that was cut short is dropped."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def spread(row: Mapping[str, Any]) -> float:
    """The standard deviation over the blocks of a measurement; zero where the plan failed."""
    return float(np.std(row["log_speedup"], ddof=1)) if "log_speedup" in row else 0.0


def by_plan(rows: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The measurements of each plan, in the order of their first."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(_key(row["plan"]), []).append(row)
    return found


def _chosen(plan: Plan) -> dict[str, str]:
    return {choice.decision: choice.option for choice in plan.choices}


def _key(chosen: Mapping[str, str]) -> str:
    return json.dumps(chosen, sort_keys=True)


def wanting(tries: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a plan with these measurements is to be measured again."""
    return len(tries) < TRIES and all(spread(row) > STEADY for row in tries)


def steady(row: Mapping[str, Any]) -> bool:
    """Whether a plan was timed, and its blocks agree."""
    return 0 < spread(row) <= STEADY


def told(row: Mapping[str, Any]) -> str:
    """What came of a measurement, in a few words."""
    return row.get("failure") or f"{np.exp(np.median(row['log_speedup'])):.2f}x, {row['accuracy_drop'][0]:+.3f}"


def measure(name: str, work: Path, until: float) -> bool:
    """Measures plans of `name` until `until` (monotonic seconds); whether all are done."""
    path, head = work / f"{name}.jsonl", work / f"{name}.json"
    tried = by_plan(read_rows(path))
    model, evaluator = evaluator_of(name, work)
    space = space_of(model)
    if not head.exists():
        head.write_text(json.dumps(described(name, model, evaluator, space), indent=1))
    plans = every_plan(space)
    with path.open("a") as file:
        for number, plan in enumerate(plans):
            chosen = _chosen(plan)
            tries = tried.setdefault(_key(chosen), [])
            while wanting(tries):
                if time.monotonic() > until:
                    return False
                row = measured(evaluator, plan)
                tries.append(row)
                file.write(json.dumps(row) + "\n")
                file.flush()
                print(f"{name} {number + 1}/{len(plans)} {row['seconds']:.2f} s {chosen}: {told(row)}", flush=True)
    return True


def repeat(name: str, work: Path) -> None:
    """Measures some plans once more, drawn from those that were timed steadily."""
    path = work / f"{name}.again.jsonl"
    model, evaluator = evaluator_of(name, work)
    plans = {_key(_chosen(plan)): plan for plan in every_plan(space_of(model))}
    firsts = [rows[0] for rows in by_plan(read_rows(work / f"{name}.jsonl")).values() if steady(rows[0])]
    done = by_plan(read_rows(path))
    with path.open("a") as file:
        for place in np.random.default_rng(0).permutation(len(firsts))[:REPEATED]:
            first = firsts[place]
            if _key(first["plan"]) not in done:
                row = measured(evaluator, plans[_key(first["plan"])])
                file.write(json.dumps(row) + "\n")
                file.flush()
                print(f"{name} {row['plan']}: {told(first)}, then {told(row)}", flush=True)


def error_of(rows: Mapping[str, list[dict[str, Any]]], again: Iterable[dict[str, Any]]) -> float:
    """The standard deviation of a plan's log_speedup from one process to another, beyond what all plans share."""
    pairs = [(rows[_key(row["plan"])][0], row) for row in again if steady(row)]
    if len(pairs) < 2:
        raise SystemExit("nothing was measured twice: run `compression_tables.py repeat` first")
    apart = [np.mean(first["log_speedup"]) - np.mean(second["log_speedup"]) for first, second in pairs]
    return float(np.std(apart, ddof=1) / np.sqrt(2))


def described(name: str, model: Any, evaluator: Any, space: SearchSpace) -> dict[str, Any]:
    """What goes with the table: space, signature, context, the original's figures and its noise."""
    from model_opt.compression.sign_model import sign_model

    facts = evaluator.describe()
    signature = sign_model(model)
    return {
        "name": name,
        "decisions": [asdict(decision) for decision in space.decisions],
        "forbidden": [
            {"when": {k: sorted(v) for k, v in rule.when.items()}, "reason": rule.reason} for rule in space.forbidden
        ],
        "frozen": [asdict(choice) for choice in space.frozen],
        "signature": asdict(signature),
        "context": asdict(facts.context),
        "baseline": dict(facts.baseline),
        "noise": dict(facts.noise),
    }


def pack(name: str, work: Path) -> None:
    """Writes what was measured of `name` as arrays, and says how much that is."""
    from plan_tables import DATA, EXACT, TIMED, space_from

    head = json.loads((work / f"{name}.json").read_text())
    tried = by_plan(read_rows(work / f"{name}.jsonl"))
    rows = [min(tries, key=spread) for tries in tried.values()]
    head["error"] = error_of(tried, read_rows(work / f"{name}.again.jsonl"))
    space, frozen = space_from(head), {choice["decision"] for choice in head["frozen"]}
    codes = [space.encode(space.plan({k: v for k, v in row["plan"].items() if k not in frozen})) for row in rows]
    head["reasons"] = sorted({row["failure"] for row in rows if "failure" in row})
    arrays: dict[str, Any] = {"codes": np.array(codes, dtype=np.uint8)}
    for metric in (*EXACT, "accuracy_error"):
        arrays[metric] = np.array([row.get(metric, [np.nan])[0] for row in rows], dtype=np.float32)
    for metric in TIMED:
        samples = [row.get(metric, []) + [np.nan] * BLOCKS for row in rows]
        arrays[metric] = np.array([values[:BLOCKS] for values in samples], dtype=np.float32)
    failure = [head["reasons"].index(row["failure"]) if "failure" in row else -1 for row in rows]
    DATA.mkdir(exist_ok=True)
    path = DATA / f"{name}.npz"
    np.savez_compressed(path, head=np.array(json.dumps(head)), failure=np.array(failure, dtype=np.int16), **arrays)
    print(f"{path.name}: {len(rows)} plans, {sum(f >= 0 for f in failure)} failed, {path.stat().st_size} bytes")


def main() -> None:
    from table_networks import NETWORKS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("measure", "repeat", "pack"))
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--only", choices=NETWORKS)
    parser.add_argument("--work", type=Path, default=Path("out/tables"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + arguments.seconds
    for name in [arguments.only] if arguments.only else NETWORKS:
        if arguments.do == "measure" and not measure(name, arguments.work, until):
            return
        if arguments.do == "repeat":
            repeat(name, arguments.work)
        if arguments.do == "pack" and (arguments.work / f"{name}.json").exists():
            pack(name, arguments.work)


if __name__ == "__main__":
    main()
