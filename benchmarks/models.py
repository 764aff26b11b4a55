"""How much faster does `optimize_auto` make well-known architectures on this machine?

python benchmarks/models.py [MODEL ...] [--quick] [--threads 1] [--json]

Random weights, so any loss is allowed; batch 8, the rule-based method. Every speed-up is the result's own: medians of
fresh processes, with a 95 % interval for one more. The goal is at least 3 for each.
"""

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path

import torch

from model_opt.autotuner import IntelligentOptimizer
from model_opt.autotuner.sources import load_source

MODELS = (
    "torchvision:resnet18",
    "torchvision:mobilenet_v3_small",
    "torchvision:convnext_tiny",
    "torchvision:vit_b_16",
    "torchvision:swin_t",
    "torchvision:efficientnet_b0",
    "torchvision:regnet_y_400mf",
    "timm:mobilevit_s",
    "timm:vit_tiny_patch16_224",
)


def optimise(name: str, timeout_s: float) -> dict[str, object]:
    source = load_source(name)
    example = source.arguments["example_input"]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        model, result = IntelligentOptimizer(Path(folder) / "knowledge.json").optimize_auto(
            source.model, timeout_seconds=timeout_s, constraints={"max_accuracy_drop": 1.0}, example_input=example
        )
    with torch.inference_mode():
        assert len(model(example)) == len(example)
    figure = result.figures["speedup"]
    return {
        "model": name,
        "speedup": [figure.low, figure.value, figure.high],
        "compression_ratio": result.compression_ratio,
        "plan": str(result.plan),
        "seconds": time.monotonic() - began,
        "notes": list(result.notes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS, help="torchvision:NAME or timm:NAME")
    parser.add_argument("--quick", action="store_true", help="two small models only")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds for each model")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    rows = []
    for name in (
        ("torchvision:mobilenet_v3_small", "timm:vit_tiny_patch16_224") if arguments.quick else arguments.models
    ):
        rows.append(row := optimise(name, arguments.timeout))
        if not arguments.json:
            low, value, high = row["speedup"]
            size = f"{row['compression_ratio']:.2f}x smaller"
            print(
                f"{name}: {value:.2f}x [{low:.2f}, {high:.2f}], {size}, {row['plan']}, {row['seconds']:.0f} s",
                flush=True,
            )
    if arguments.json:
        print(json.dumps({"models": rows}))


if __name__ == "__main__":
    main()
