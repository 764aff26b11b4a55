import pytest
import torch
from architectures import ResidualCNN, TinyViT, UNet, unet_inputs
from recipes import applied, material, state, survives, unchanged

from model_opt.compression.cost import cost
from model_opt.compression.inputs import call
from model_opt.compression.technique import HANDLERS
from model_opt.compression.techniques.token_merging import merge, merge_at_most
from model_opt.errors import TechniqueError


def test_merge_by_hand() -> None:
    """A class token c and tokens p0 … p3: the first set is p0, p2, the second p1, p3.

    The keys of p2 and p1 are alike, those of p0 and p3 less so: p2 goes into p1. p2 stands for two patches.
    """
    tokens = torch.tensor([[[9.0], [1.0], [2.0], [5.0], [4.0]]])
    size = torch.tensor([[[1.0], [1.0], [1.0], [2.0], [1.0]]])
    keys = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [1.0, 1.0]]])
    made, sizes = merge(tokens, size, keys, 1, 1)
    assert made.flatten().tolist() == [9.0, 1.0, pytest.approx((2 + 2 * 5) / 3), 4.0]
    assert sizes.flatten().tolist() == [1.0, 1.0, 3.0, 1.0]


def test_merging_keeps_the_sum_of_all_patches() -> None:
    tokens, size = torch.randn(3, 17, 8), torch.rand(3, 17, 1) + 1
    made, sizes = merge(tokens, size, torch.randn(3, 17, 4), 5, 1)
    assert made.shape == (3, 12, 8)
    assert torch.allclose((made * sizes).sum(1), (tokens * size).sum(1), atol=1e-4)
    assert torch.allclose(made[:, 0], tokens[:, 0], atol=1e-6)


def test_where_no_pair_is_left_nothing_is_merged() -> None:
    tokens = torch.randn(2, 2, 8)
    made, sizes = merge_at_most(tokens, None, torch.randn(2, 2, 4), 4, 1)
    assert torch.equal(made, tokens) and torch.equal(sizes, torch.ones(2, 2, 1))


def test_vit_with_cleaned_attention() -> None:
    model, x = TinyViT().eval(), torch.randn(2, 3, 32, 32)
    before = state(model)
    recipe = material(model, x, [x])
    assert tuple(HANDLERS["token_merging"].options(model, recipe.signature, recipe.machine)) == ("4", "8", "16")
    made = applied(recipe, token_merging="16")
    assert made(x).shape == (2, 10)
    assert cost(made, x).flops < 0.8 * cost(applied(recipe, clean="fused"), x).flops
    assert unchanged(model, before)
    survives(made, x)


def test_timm_vit_and_low_rank_before_it() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=96, depth=3).eval()
    x = torch.randn(2, 3, 96, 96)
    made = applied(material(model, x, [torch.randn(32, 3, 96, 96)]), low_rank="0.5", token_merging="8")
    survives(made, x)


@pytest.mark.parametrize("option", ["4", "24"])
def test_static_int8_of_merging_blocks(option: str) -> None:
    """24 are more than the second block has pairs: it merges those that there are, as it does in float."""
    torch.manual_seed(0)
    model, x = TinyViT(width=32, depth=2).eval(), torch.randn(8, 3, 32, 32)
    recipe = material(model, x, [x])
    merged = applied(recipe, token_merging=option)
    made = applied(recipe, token_merging=option, precision="int8_static")
    with torch.no_grad():
        found, wanted = made(x), merged(x)
    assert float((found - wanted).norm() / wanted.norm()) < 0.3


def test_unet_through_tomesd() -> None:
    pytest.importorskip("tomesd")
    model, inputs = UNet().eval(), unet_inputs(2)
    recipe = material(model, inputs, [inputs])
    assert tuple(HANDLERS["token_merging"].options(model, recipe.signature, recipe.machine)) == ("0.25", "0.5")
    made = applied(recipe, token_merging="0.5")
    with torch.no_grad():
        found, wanted = call(made, inputs), call(model, inputs)
    assert found.shape == wanted.shape
    assert cost(made, inputs).flops < cost(model, inputs).flops
    assert float((found - wanted).norm() / wanted.norm()) < 0.5


def test_networks_without_tokens() -> None:
    model, x = ResidualCNN(8).eval(), torch.randn(2, 1, 8, 8)
    recipe = material(model, x, [x])
    assert not HANDLERS["token_merging"].options(model, recipe.signature, recipe.machine)
    with pytest.raises(TechniqueError, match="no sequence of plain transformer blocks"):
        applied(recipe, token_merging="8")


def test_swin_has_no_options() -> None:
    import torchvision

    model = torchvision.models.swin_t(weights=None)
    assert not HANDLERS["token_merging"].options(model, None, None)
