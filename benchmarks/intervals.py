"""Does a stated speed-up hold? Re-measures results in fresh processes and counts how often they lie in the interval.

python benchmarks/intervals.py [--quick] [--json]

Optimises the digits network (and torchvision's mobilenet_v3_small without --quick), then starts ten more processes for
each, every one of which loads the saved models and times them in turn. The goal is nine of ten.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from digits import make_network, read_digits, train

from model_opt.autotuner import IntelligentOptimizer, save_model
from model_opt.autotuner.finish import one_start
from model_opt.autotuner.sources import load_source
from model_opt.compression.inputs import Inputs

AGAIN = 10


def inside(model: nn.Module, example: Inputs, **arguments: object) -> dict[str, object]:
    """How many of `AGAIN` fresh processes measure a speed-up within the stated interval."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _, result = IntelligentOptimizer(folder / "kb.json").optimize_auto(
            model, "rule_based", example_input=example, output=folder / "out", **arguments
        )
        save_model(model.eval(), folder / "original.pt", recipe={})
        figure = result.figures["speedup"]
        again = [
            one_start(
                folder / "original.pt",
                folder / "out" / "model.pt",
                example,
                torch.get_num_threads(),
                number % 2 == 0,
                None,
            ).speedup
            for number in range(AGAIN)
        ]
    held = sum(figure.low <= speedup <= figure.high for speedup in again)
    return {"stated": [figure.low, figure.value, figure.high], "again": again, "inside": held, "of": AGAIN}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the digits network only")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments = parser.parse_args()
    data = read_digits()
    digits = make_network()
    train(digits, *data["train"], epochs=6)
    images = data["calibrate"][0]
    rows = {"digits": inside(digits, images[:8], calibration_data=images.split(50))}
    if not arguments.quick:
        source = load_source("torchvision:mobilenet_v3_small")
        bounds = {"max_accuracy_drop": 1.0}
        rows["mobilenet_v3_small"] = inside(source.model, source.arguments["example_input"], constraints=bounds)
    if arguments.json:
        print(json.dumps(rows))
        return
    for name, row in rows.items():
        low, value, high = row["stated"]
        print(f"{name}: stated {value:.2f}x [{low:.2f}, {high:.2f}]; {row['inside']} of {row['of']} inside")
        print("  again: " + ", ".join(f"{speedup:.2f}" for speedup in row["again"]))


if __name__ == "__main__":
    main()
