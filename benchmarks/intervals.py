"""Does a stated speed-up hold, beside other programs too? Counts how often its interval holds the quiet figure.

python benchmarks/intervals.py [--results 20] [--busy] [--quick] [--json]

Every result is an optimisation of its own, of one of several plans of the digits network, with its final figures in
fresh processes. What it says is held against what fresh processes of the same saved models measure on the quiet
machine, before and after: an interval that holds that, or a result that says that its speed was not measured, is
right. With --busy the optimisations run beside a program that spins on one processor, and beside one on each.
Goals: 20 of 20 busy, 19 of 20 quiet with a median interval of at most ± 20 %.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from digits import make_network, read_digits, train

from model_opt.autotuner import IntelligentOptimizer, save_model
from model_opt.autotuner.callbacks import Callbacks
from model_opt.autotuner.figures import is_uncertain
from model_opt.autotuner.fresh_starts import PATIENCE_S, FreshStarts
from model_opt.autotuner.result import CompressionResult
from model_opt.compression.machine import usable_processors

PLANS: tuple[Mapping[str, str], ...] = (
    {"clean": "fused", "runtime": "openvino"},
    {"clean": "fused", "precision": "int8_static", "runtime": "openvino"},
    {"clean": "fused", "runtime": "onnxruntime"},
    {"clean": "fused", "prune": "0.5"},
)
AGAIN = 2
"""Quiet processes that measure a result's models again, before and after it."""
TIMEOUT_S = 200.0


@contextmanager
def beside(programs: int) -> Iterator[None]:
    """So many programs that spin, wherever the system puts them."""
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(programs)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def one_result(
    model: nn.Module, images: Tensor, plan: Mapping[str, str], programs: int, quiet: dict[str, list[float]]
) -> dict[str, object]:
    """One optimisation beside `programs`, and whether what it says of the speed is right. `quiet` keeps what quiet
    processes have measured of each plan so far."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(model, folder / "original.pt", recipe={})
        with beside(programs):
            _, result = IntelligentOptimizer(folder / "kb.json", callbacks=Callbacks()).optimize_auto(
                model,
                "mcts",
                1,
                TIMEOUT_S,
                {"max_accuracy_drop": 1.0},
                images[:8],
                calibration_data=images.split(50),
                plans=[plan],
                output=folder / "out",
            )
        told = quiet.setdefault(str(result.plan), [])
        told += quiet_log_speedups(folder, images[:8])
        return judged(result, math.exp(float(np.median(told))))


def quiet_log_speedups(folder: Path, example: Tensor) -> list[float]:
    """What more fresh processes measure, on the quiet machine."""
    threads = min(torch.get_num_threads(), usable_processors())
    with FreshStarts(folder / "original.pt", folder / "out" / "model.pt", example, threads, None) as starts:
        made = [starts.compare(PATIENCE_S) for _ in range(AGAIN)]
    return [one.log_speedup for one in made if one is not None]


def judged(result: CompressionResult, quiet: float) -> dict[str, object]:
    """What the result says beside the quiet figure; the model as it is is as fast as itself."""
    figure = result.figures["speedup"]
    quiet = quiet if result.plan.choices else 1.0
    inside, said = figure.low <= quiet <= figure.high, bool(figure.doubt) or is_uncertain(figure)
    return {
        "plan": str(result.plan),
        "stated": [figure.low, figure.value, figure.high],
        "doubt": figure.doubt,
        "quiet": quiet,
        "inside": inside,
        "right": inside or said,
    }


def counted(rows: list[dict[str, object]]) -> dict[str, object]:
    """How many held, and how wide the intervals of those that claim something are: half of it, as a share."""
    spans = [row["stated"] for row in rows if not row["doubt"]]
    widths = [math.sqrt(high / low) - 1 for low, _, high in spans if low > 0]  # type: ignore[misc,has-type]
    return {
        "held": sum(bool(row["right"]) for row in rows),
        "of": len(rows),
        "measured": len(spans),
        "median_width": float(np.median(widths)) if widths else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=int, default=20, help="results a row")
    parser.add_argument("--busy", action="store_true", help="beside programs that spin, too")
    parser.add_argument("--quick", action="store_true", help="two results a row")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments = parser.parse_args()
    data = read_digits()
    model = make_network()
    train(model, *data["train"], epochs=6)
    images = data["calibrate"][0]
    many = 2 if arguments.quick else arguments.results
    crowds = [0, 1, usable_processors()] if arguments.busy else [0]
    quiet: dict[str, list[float]] = {}
    rows: dict[int, list[dict[str, object]]] = {programs: [] for programs in crowds}
    for number in range(many):  # in turn: the machine changes while this runs
        for programs, made in rows.items():
            made.append(one_result(model, images, PLANS[number % len(PLANS)], programs, quiet))
            print(json.dumps({"programs": programs} | made[-1]), file=sys.stderr, flush=True)
    found = {f"beside {programs}" if programs else "quiet": counted(made) for programs, made in rows.items()}
    if arguments.json:
        told = [{"programs": programs} | row for programs, made in rows.items() for row in made]
        print(json.dumps({"counts": found, "rows": told}))
        return
    for name, row in found.items():
        width = "" if row["median_width"] is None else f"; median interval ± {row['median_width']:.0%}"
        print(f"{name}: right in {row['held']} of {row['of']}, {row['measured']} of them measured{width}")


if __name__ == "__main__":
    main()
