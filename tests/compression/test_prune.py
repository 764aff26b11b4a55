import pytest
import torch
from architectures import DiT, ResidualCNN, TinyViT, UNet, unet_inputs
from recipes import accuracy, applied, material, noisy_norms, state, survives, trained, unchanged
from torch import nn

from model_opt.compression.cost import cost
from model_opt.compression.inputs import call
from model_opt.compression.stages import stages
from model_opt.compression.techniques.heads import heads_of, prune_heads
from model_opt.compression.techniques.prune import heads
from model_opt.compression.techniques.refit import KEPT
from model_opt.errors import TechniqueError


@pytest.mark.parametrize(("ratio", "least"), [("0.25", 1.4), ("0.5", 3.0), ("0.7", 6.0)])
def test_residual_network_shrinks(ratio: str, least: float) -> None:
    recipe = trained()
    before = state(recipe.teacher)
    made = applied(recipe, prune=ratio)
    old, new = cost(recipe.teacher, recipe.example), cost(made, recipe.example)
    assert old.flops > least * new.flops and old.parameters > least * new.parameters
    assert unchanged(recipe.teacher, before)
    survives(made, recipe.example)


def test_the_same_seed_gives_the_same_model() -> None:
    recipe = trained()
    once, again = applied(recipe, prune="0.5"), applied(recipe, prune="0.5")
    assert unchanged(once, state(again))


def test_kept_channels_are_those_of_the_original() -> None:
    recipe = trained()
    made = applied(recipe, prune="0.5")
    conv = made.get_submodule("layer2.conv1")
    kept = getattr(conv, KEPT)
    assert len(kept) == conv.out_channels < 32
    assert torch.equal(kept, kept.sort().values) and int(kept.max()) < 32


def test_only_the_stage_is_pruned() -> None:
    recipe = trained()
    made = applied(recipe, **{"prune/stage2": "0.5"})
    inside = stages(recipe.teacher)["stage2"]
    widths = {
        n: (m.out_channels, made.get_submodule(n).out_channels)
        for n, m in recipe.teacher.named_modules()
        if isinstance(m, nn.Conv2d)
    }
    assert all(a == b for n, (a, b) in widths.items() if not any(n.startswith(p) for p in inside))
    assert any(a > b for a, b in widths.values())
    assert accuracy(made) > 0.9


def test_transformers_lose_hidden_units_and_heads_and_keep_their_stream() -> None:
    model, x = TinyViT().eval(), torch.randn(2, 3, 32, 32)
    made = applied(material(model, x, [torch.randn(16, 3, 32, 32) for _ in range(2)]), prune="0.5")
    assert made.get_submodule("blocks.1.mlp.0").out_features == 128
    attention = made.get_submodule("blocks.1.attention")
    assert attention.num_heads == 2 and attention.head_dim == 16
    assert (attention.qkv.out_features, attention.proj.in_features, attention.proj.out_features) == (96, 32, 64)
    kept = getattr(attention.qkv, KEPT)
    assert torch.equal(kept[:32] + 64, kept[32:64]) and torch.equal(kept[:32] + 128, kept[64:])
    survives(made, x)


def test_a_head_that_does_nothing_goes_first() -> None:
    model, x = TinyViT().eval(), torch.randn(2, 3, 32, 32)
    recipe = material(model, x, [torch.randn(16, 3, 32, 32)])
    cleaned = applied(recipe, clean="fused")
    for each in heads_of(cleaned):
        with torch.no_grad():
            each.out.weight[:, 16:32] = 0  # the second of four
            each.makers[0].weight.view(3, 4, 16, -1)[:, 1] *= 1e-3
            each.makers[0].bias.view(3, 4, 16)[:, 1] = 0
    expected = cleaned(x)
    assert prune_heads(cleaned, 0.25, lambda name: True) == 3
    assert torch.allclose(cleaned(x), expected, atol=1e-5)


@pytest.mark.parametrize("make", [UNet, DiT])
def test_diffusion_models(make: type[nn.Module]) -> None:
    model = make().eval()
    inputs = unet_inputs(2)[: 3 if make is UNet else 2]
    fit = [unet_inputs(8, seed)[: len(inputs)] for seed in range(2)]
    made = applied(material(model, inputs, fit), prune="0.5")
    assert call(made, inputs).shape == call(model, inputs).shape
    assert cost(made, inputs).parameters < cost(model, inputs).parameters


def test_depthwise_layers_shrink_with_their_group() -> None:
    model = noisy_norms(
        nn.Sequential(
            nn.Conv2d(3, 64, 1), nn.BatchNorm2d(64), nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1, groups=64), nn.BatchNorm2d(64), nn.ReLU(),
            nn.Conv2d(64, 32, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4),
        )
    )  # fmt: skip
    x = torch.randn(2, 3, 8, 8)
    made = applied(material(model, x, [torch.randn(32, 3, 8, 8)]), prune="0.5")
    depthwise = made.get_submodule("3")
    assert depthwise.groups == depthwise.out_channels == depthwise.in_channels == 32


def test_heads_are_found_behind_pools_and_activations() -> None:
    model = ResidualCNN(8).eval()
    assert heads(model, torch.randn(1, 1, 8, 8)) == [model.head]
    headless = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    assert heads(headless, torch.randn(1, 1, 8, 8)) == [headless[2]]


def test_a_single_layer_cannot_be_pruned() -> None:
    x = torch.randn(2, 16)
    with pytest.raises(TechniqueError, match="changed nothing"):
        applied(material(nn.Sequential(nn.Linear(16, 4)).eval(), x, [x]), prune="0.5")


def test_unknown_stage() -> None:
    with pytest.raises(TechniqueError, match="no stage 'stage9'"):
        applied(trained(), **{"prune/stage9": "0.5"})


NINE = ["resnet18", "mobilenet_v3_small", "convnext_tiny", "vit_b_16", "swin_t", "efficientnet_b0", "regnet_y_400mf"]


@pytest.mark.soak
@pytest.mark.parametrize("technique", [{"prune": "0.5"}, {"low_rank": "0.5"}])
@pytest.mark.parametrize("name", [*NINE, "timm:mobilevit_s", "timm:vit_tiny_patch16_224"])
def test_zoo(name: str, technique: dict[str, str]) -> None:
    import torchvision

    if name.startswith("timm:"):
        model = pytest.importorskip("timm").create_model(name[5:], pretrained=False)
    else:
        model = getattr(torchvision.models, name)(weights=None)
    x = torch.randn(2, 3, 224, 224)
    made = applied(material(noisy_norms(model), x, [torch.randn(16, 3, 224, 224)]), **technique)
    survives(made, x)


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("shuffle", [nn.PixelShuffle, nn.PixelUnshuffle])
def test_widths_around_a_pixel_shuffle_stay_and_others_go(shuffle: type[nn.Module], factor: int) -> None:
    wide = 32 * factor**2
    after = 32 if shuffle is nn.PixelShuffle else wide * factor**2
    model = nn.Sequential(
        nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, wide, 3, padding=1), shuffle(factor), nn.ReLU(),
        nn.Conv2d(after, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 1, 3, padding=1),
    ).eval()  # fmt: skip
    x = torch.randn(4, 1, 12, 12)
    made = applied(material(model, x, [x]), prune="0.5")
    widths = [m.out_channels for m in made.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [32, wide, 32, 1]
    with torch.no_grad():
        assert made(x).shape == model(x).shape
