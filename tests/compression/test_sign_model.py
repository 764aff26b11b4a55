"""Families are read from structure; equal architectures have equal keys in every process."""

import subprocess
import sys

import pytest
import torch
from architectures import DiT, ResidualCNN, TinyViT, UNet
from torch import nn
from torchvision import models

from model_opt.compression.sign_model import sign_model
from model_opt.search.model_signature import OPERATORS, Family

FAMILIES = {
    "resnet18": Family.CNN,
    "mobilenet_v3_small": Family.CNN,
    "efficientnet_b0": Family.CNN,
    "regnet_y_400mf": Family.CNN,
    "densenet121": Family.CNN,
    "convnext_tiny": Family.CNN,
    "vit_b_16": Family.VIT,
    "swin_t": Family.VIT,
    "maxvit_t": Family.HYBRID,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_torchvisions_families(name):
    model = models.get_model(name, weights=None)
    signature = sign_model(model)
    assert signature.family is FAMILIES[name]
    assert signature.parameters == sum(p.numel() for p in model.parameters())
    assert set(signature.operators) <= set(OPERATORS)
    assert 2 <= len(signature.stages) <= 4


@pytest.mark.parametrize(
    ("name", "family"),
    [("mobilevit_s", Family.HYBRID), ("vit_tiny_patch16_224", Family.VIT), ("coatnet_0_rw_224", Family.HYBRID)],
)
def test_timms_families(name, family):
    timm = pytest.importorskip("timm", reason="pip install 'model_opt[timm]'")
    assert sign_model(timm.create_model(name)).family is family


@pytest.mark.parametrize(
    ("make", "family"),
    [(UNet, Family.DIFFUSION), (DiT, Family.DIFFUSION), (TinyViT, Family.VIT), (ResidualCNN, Family.CNN)],
)
def test_our_own_families(make, family):
    assert sign_model(make()).family is family


def test_names_do_not_matter_and_neither_do_weights():
    class Resnet(nn.Module):  # a transformer by a misleading name
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(32, 4, 64)
            self.conv_stack = nn.ModuleList([nn.Conv2d(3, 32, 4, 4), nn.TransformerEncoder(layer, 3)])

    torch.manual_seed(1)
    first = sign_model(Resnet())
    torch.manual_seed(2)
    assert first.family is Family.VIT and first.key == sign_model(Resnet()).key


def test_equal_architectures_have_equal_keys_in_another_process():
    code = (
        "import torch; from torchvision.models import resnet18; from model_opt import sign_model;"
        "torch.set_default_device('meta'); print(sign_model(resnet18()).key)"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    with torch.device("meta"):
        assert sign_model(models.resnet18()).key == there != sign_model(models.resnet34()).key
