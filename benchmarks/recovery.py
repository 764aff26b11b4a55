"""What the label-free recovery keeps of a residual CNN on MNIST: accuracy, size and FLOPs of plans, without any labels.

python benchmarks/recovery.py [--quick] [--threads 1] [--json]

The network is trained on 4,000 of 5,000 digits; plans are fitted on 768 of these without their labels (256 more tell
whether distillation helps), and the accuracy is that on the 1,000 that nobody has seen. Goals: at most one point lost,
at least 9 times smaller as saved (`smaller_within_a_point`) and 5 times fewer FLOPs (`fewer_flops_within_a_point`).
"""

import argparse
import json
import sys
import time

import torch
from contenders.networks import mnist_cnn
from contenders.rows import digits, train
from torch import Tensor, nn

from model_opt.compression import space  # noqa: F401  (registers every technique)
from model_opt.compression.cost import cost
from model_opt.compression.evaluation.apply import apply_plan
from model_opt.compression.machine import inspect
from model_opt.compression.runtimes.size import size_bytes
from model_opt.compression.sign_model import sign_model
from model_opt.compression.technique import Material, handler_of
from model_opt.errors import TechniqueDidNothing
from model_opt.search.plan import Choice, Plan

INT8 = {"precision": "int8_static"}
PLANS: tuple[dict[str, str], ...] = (
    {"prune": "0.25"},
    {"prune": "0.5"},
    {"prune": "0.7"},
    {"low_rank": "0.5"},
    {"low_rank": "0.25"},
    {"prune": "0.5", "low_rank": "0.5"},
    {"prune": "0.25", "low_rank": "0.25"},
    {"prune": "0.25", "low_rank": "0.25", "distil": "100"},
    {"prune": "0.5", "low_rank": "0.5", "distil": "100"},
    {"prune": "0.5", **INT8},
    {"low_rank": "0.25", **INT8},
    {"prune": "0.25", "low_rank": "0.25", **INT8},
)
QUICK = PLANS[1:2] + PLANS[6:7] + PLANS[11:]


def measure(choices: dict[str, str], material: Material, images: Tensor, labels: Tensor) -> dict[str, object]:
    """Accuracy, and how many times smaller and cheaper the plan's model is; FLOPs are those before int8."""
    made_of = {name: option for name, option in choices.items() if name != "precision"}
    began = time.monotonic()
    model = apply_plan(_plan(choices), material)
    seconds = time.monotonic() - began
    before, after = (cost(m, material.example) for m in (material.teacher, apply_plan(_plan(made_of), material)))
    return {
        "plan": str(_plan(choices)),
        "accuracy": accuracy(model, images, labels),
        "smaller": size_bytes(material.teacher) / size_bytes(model),
        "fewer_flops": before.flops / after.flops,
        "seconds": seconds,
    }


def _plan(choices: dict[str, str]) -> Plan:
    return Plan(tuple(Choice(decision=d, option=o, version=handler_of(d)[0].version) for d, o in choices.items()))


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    made = torch.cat([model(batch).argmax(1) for batch in images.split(8)])
    return float((made == labels).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three plans only")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    seen, classes, images, labels = digits()
    torch.manual_seed(0)
    model = mnist_cnn()
    train(model, seen, classes, epochs=4)
    model.eval()
    material = Material(
        teacher=model,
        example=seen[:8],
        fit=list(seen[:768].split(64)),
        held_out=list(seen[768:1024].split(64)),
        signature=sign_model(model),
        machine=inspect(),
        threads=arguments.threads,
        seed=0,
        phase=lambda name: None,
    )
    dense = accuracy(model, images, labels)
    if not arguments.json:
        print(f"as it is: {dense:.1%}, {size_bytes(model) / 1e3:.0f} kB", flush=True)
    rows = []
    for choices in QUICK if arguments.quick else PLANS:
        try:
            rows.append(row := measure(choices, material, images, labels))
        except TechniqueDidNothing as error:  # distillation that did not help is taken back
            print(f"{_plan(choices)}: {error}", file=sys.stderr)
            continue
        if not arguments.json:
            print(
                f"{row['accuracy']:.1%}, {row['smaller']:.1f}x smaller, {row['fewer_flops']:.1f}x fewer FLOPs, "
                f"{row['seconds']:.0f} s: {row['plan']}",
                flush=True,
            )
    close = [row for row in rows if row["accuracy"] >= dense - 0.01]
    goals = {
        "smaller_within_a_point": max((row["smaller"] for row in close), default=0.0),
        "fewer_flops_within_a_point": max((row["fewer_flops"] for row in close), default=0.0),
    }
    if arguments.json:
        print(json.dumps({"accuracy": dense, "plans": rows} | goals))
    else:
        print(", ".join(f"{name} {value:.1f}" for name, value in goals.items()))


if __name__ == "__main__":
    main()
