"""How much of making a plan's model are the checks that it is right? (The mutation test shows what they catch.)

python benchmarks/checks.py [--quick] [--json]

Every network is compiled in every runtime here, in float32 and int8, with the checks of `runtimes/checks.py` timed
apart: other batches, another order, turned flags, a second call and two threads, against torch. --quick takes the
networks of a second.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from typing import Any

import torch
from making import material_of, plan_of
from torch import Tensor, nn

from model_opt.autotuner.sources import load_source
from model_opt.compression.evaluation.apply import apply_plan
from model_opt.compression.runtimes import precision, runtime_decision
from model_opt.errors import MeasurementFailed, TechniqueError

NETWORKS = ("digits", "torchvision:mobilenet_v3_small", "torchvision:resnet18", "timm:vit_tiny_patch16_224")
QUICK = NETWORKS[:2]
PLANS = tuple((made, numbers) for made in ("openvino", "onnxruntime") for numbers in ("fp32", "int8_static"))


def network(name: str) -> tuple[nn.Module, Tensor]:
    """A model with random weights, and a batch of noise."""
    if name != "digits":
        source = load_source(name, batch=8)
        return source.model.eval(), source.arguments["example_input"]
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 10)).eval(), torch.randn(8, 1, 8, 8)


class Watch:
    """Times every call of the functions that it wraps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, timed."""

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - began

        return timed


def costs(name: str, watch: Watch) -> list[dict[str, object]]:
    """Seconds of each plan, and of its checks."""
    model, example = network(name)
    fit, held_out = (torch.randn(32, *example.shape[1:]) for _ in range(2))
    material = material_of(model, example, [fit], [held_out])
    rows = []
    for made, numbers in PLANS:
        if find_spec(made) is None:
            continue
        watch.seconds = 0.0
        row: dict[str, object] = {"network": name, "runtime": made, "precision": numbers}
        plan = plan_of(material, {"clean": "fused", "precision": numbers, "runtime": made})
        began = time.perf_counter()
        try:
            apply_plan(plan, material)
        except (TechniqueError, MeasurementFailed) as error:
            row["refused"] = str(error)[:100]
        whole = time.perf_counter() - began
        rows.append(row | {"seconds": whole, "checks_s": watch.seconds, "share": watch.seconds / whole})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the networks of a second")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments = parser.parse_args()
    watch = Watch()
    runtime_decision.checked = watch.around(runtime_decision.checked)  # type: ignore[attr-defined]
    precision.checked = watch.around(precision.checked)  # type: ignore[attr-defined]
    found = [row for name in (QUICK if arguments.quick else NETWORKS) for row in costs(name, watch)]
    if arguments.json:
        print(json.dumps({"plans": found}))
        return
    for row in found:
        print(
            f"{row['network']:34} {row['runtime']:12} {row['precision']:12} {row['seconds']:6.2f} s, checks "
            f"{row['checks_s']:5.2f} s ({row['share']:.0%}) {row.get('refused', '')}"
        )


if __name__ == "__main__":
    main()
