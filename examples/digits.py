"""Trains a small residual CNN on scikit-learn's digits, compresses it, and checks the answer on digits never used.

python examples/digits.py [--simulations 24] [--output out/digits]

Then a second deployment, with keys and a knowledge base of its own, takes in what the first has measured and signed,
and compresses a similar network with it: `second_deployment.py`.
"""

import argparse
import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import torch
from rich.console import Console
from sklearn.datasets import load_digits
from torch import Tensor, nn

from model_opt.autotuner import IntelligentOptimizer
from model_opt.autotuner.callbacks import LineProgress
from model_opt.cli.tables import print_result
from model_opt.exchange.shared import export_bundle
from model_opt.federation.identity import deployment_identity
from model_opt.storage.open import open_store

LEAST_SEARCH_S = 45.0
"""However long training takes, the search has these seconds."""


class Residual(nn.Module):
    def __init__(self, narrow: int, wide: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(narrow, wide, 3, stride, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.Conv2d(wide, wide, 3, 1, 1, bias=False),
            nn.BatchNorm2d(wide),
        )
        self.skip = nn.Identity()
        if narrow != wide or stride != 1:
            self.skip = nn.Sequential(nn.Conv2d(narrow, wide, 1, stride, bias=False), nn.BatchNorm2d(wide))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + self.skip(x))


def make_network(width: int = 32) -> nn.Module:
    """A network of four residual blocks that begins with `width` channels."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        Residual(width, 2 * width),
        Residual(2 * width, 2 * width),
        Residual(2 * width, 4 * width, 2),
        Residual(4 * width, 4 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, 10),
    )


def read_digits() -> dict[str, tuple[Tensor, Tensor]]:
    """Images `[rows, 1, 8, 8]` and classes `[rows]`: 1,000 to train on, 400 to judge by, 397 for the last word."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    classes = torch.tensor(digits.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    parts = {"train": order[:1000], "calibrate": order[1000:1400], "test": order[1400:]}
    return {name: (images[rows], classes[rows]) for name, rows in parts.items()}


def train(model: nn.Module, images: Tensor, classes: Tensor, epochs: int = 6) -> None:
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    steps = epochs * -(-len(images) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[rows]), classes[rows]).backward()
            optimizer.step()
            schedule.step()
    model.eval()


def accuracy(model: nn.Module, images: Tensor, classes: Tensor) -> float:
    with torch.inference_mode():
        return float((model(images).argmax(1) == classes).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=24)
    parser.add_argument("--timeout", type=float, default=188.0, help="seconds for training, search and final figures")
    parser.add_argument("--output", type=Path, default=Path("out/digits"))
    parser.add_argument("--workers", type=int, default=2, help="workers of a local Ray cluster; 0 does without Ray")
    parser.add_argument("--alone", action="store_true", help="do without the second deployment")
    arguments = parser.parse_args()
    console = Console()

    data = read_digits()
    began = time.monotonic()
    torch.manual_seed(0)
    model = make_network()
    train(model, *data["train"])
    console.print(f"trained a residual CNN on 1,000 digits in {time.monotonic() - began:.0f} s", highlight=False)

    images, classes = data["calibrate"]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    store = arguments.output.parent / "knowledge.json"
    optimizer = IntelligentOptimizer(knowledge_base_path=store, callbacks=LineProgress())
    optimised, result = optimizer.optimize_auto(
        model,
        method="hybrid",
        n_simulations=arguments.simulations,
        timeout_seconds=max(arguments.timeout - (time.monotonic() - began), LEAST_SEARCH_S),
        constraints={"max_accuracy_drop": 0.01},
        example_input=images[:8],
        calibration_data=zip(images.split(50), classes.split(50), strict=True),
        train_data=zip(*(part.split(50) for part in data["train"]), strict=True),
        output=arguments.output,
        ray_address="local" if arguments.workers else None,
        workers=arguments.workers or None,
    )
    print_result(result, console)
    before, after = accuracy(model, *data["test"]), accuracy(optimised, *data["test"])
    console.print(
        f"[bold]on {len(data['test'][0])} digits that nothing was fitted or judged on:[/] "
        f"{before:.2%} before, {after:.2%} after"
    )
    console.print(f"saved: model-opt show {arguments.output}", highlight=False)
    if not arguments.alone:
        share_with_another(arguments.output, store, console)


def share_with_another(output: Path, store: Path, console: Console) -> None:
    """Signs what is known, and runs a second deployment that takes it in: another process with another home."""
    bundle = output.parent / "knowledge.mopt"
    with closing(open_store(store)) as opened:
        exported = export_bundle(opened, bundle)
    console.rule("a second deployment, on this machine")
    told = f"{exported.told} signed record{'s were' if exported.told != 1 else ' was'} exported"
    console.print(f"{told} to {bundle}: {exported.size_bytes} bytes")
    home = (output.parent / "second").resolve()
    home.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [
            sys.executable,
            Path(__file__).with_name("second_deployment.py"),
            bundle,
            output,
            deployment_identity().origin,
        ],
        env=os.environ | {"HOME": str(home), "XDG_DATA_HOME": str(home)},
        check=True,
    )


if __name__ == "__main__":
    main()
