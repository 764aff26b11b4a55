"""What a second worker on one machine is worth: plans settled with figures by a fleet of two, and by one process.

python benchmarks/two_workers.py [--seconds 90] [--rounds 1] [--json]

Both search for the digits network's best plan for so many seconds, everything included (the start of the fleet too), in
turn, each in a process of its own; a short search first fills the compilers' caches. `ratio` is plans with figures of
the fleet / those of one process; the goal is 1.4. `seconds_of` says where the measuring processes' time went, by phase,
and `busy` what share of the processors' time was used.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

EXAMPLES = str(Path(__file__).resolve().parents[1] / "examples")
sys.path.insert(0, EXAMPLES)

GOAL = 1.4
WARM_S = 60.0


def search(workers: int, seconds: float) -> dict[str, Any]:
    """Searches in this process: alone if `workers` is 0, else on a local cluster."""
    from digits import make_network, read_digits, train

    from model_opt.autotuner import IntelligentOptimizer
    from model_opt.autotuner.callbacks import Callbacks

    data = read_digits()
    model = make_network()
    train(model, *data["train"], epochs=6)
    images, classes = data["calibrate"]
    with tempfile.TemporaryDirectory() as folder:
        _, result = IntelligentOptimizer(Path(folder) / "kb.json", callbacks=Callbacks()).optimize_auto(
            model,
            method="mcts",
            n_simulations=500,
            timeout_seconds=seconds,
            constraints={"max_accuracy_drop": 0.01},
            example_input=images[:8],
            calibration_data=zip(images.split(50), classes.split(50), strict=True),
            train_data=zip(*(part.split(50) for part in data["train"]), strict=True),
            ray_address="local" if workers else None,
            workers=workers or None,
        )
    plans = [one for one in result.observations if one.purpose in ("explore", "verify")]
    spent: Counter[str] = Counter()
    for one in plans:
        spent.update(one.seconds)
    return {
        "figures": sum(one.failure is None for one in plans),
        "settled": len(plans),
        "first_s": round(min((one.at_s for one in plans), default=0.0), 1),
        "last_s": round(max((one.at_s for one in plans), default=0.0), 1),
        "seconds_of": {name: round(value, 1) for name, value in spent.items()},
        "fleet": {name: result.fleet[name] for name in ("measured_by", "busy_s") if name in result.fleet},
        "phases": {name: round(value, 1) for name, value in result.seconds.items()},
    }


def measured(workers: int, seconds: float) -> dict[str, Any]:
    """`search` in a fresh process, and what share of the processors' time was used meanwhile."""
    before = _ticks()
    command = [sys.executable, __file__, "--search", str(workers), "--seconds", str(seconds)]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": EXAMPLES}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    idle, every = (after - at for after, at in zip(_ticks(), before, strict=True))
    return {"workers": workers, **figures, "busy": round(1 - idle / every, 2)}


def _ticks() -> tuple[int, int]:
    """Idle ticks and all ticks of the machine's processors."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return fields[3] + fields[4], sum(fields)


def compare(seconds: float, rounds: int) -> Mapping[str, Any]:
    measured(0, min(seconds, WARM_S))
    rows = [measured(workers, seconds) for _ in range(rounds) for workers in (0, 2)]
    alone, fleet = (sum(row["figures"] for row in rows if row["workers"] == workers) for workers in (0, 2))
    return {"ratio": round(fleet / max(alone, 1), 2), "goal": GOAL, "searches": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=90.0, help="for each search, all included")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--search", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.search is not None:
        print(json.dumps(search(arguments.search, arguments.seconds)))
        return
    found = compare(arguments.seconds, arguments.rounds)
    if arguments.json:
        print(json.dumps(found))
        return
    for row in found["searches"]:
        print(row)
    print(f"a fleet of two settles {found['ratio']:.2f} times the plans of one process (goal {GOAL})")


if __name__ == "__main__":
    main()
