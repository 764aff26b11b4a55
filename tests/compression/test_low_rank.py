import pytest
import torch
from architectures import TinyViT
from recipes import accuracy, applied, material, state, survives, trained, unchanged
from torch import nn

from model_opt.compression.cost import cost
from model_opt.compression.samples import sampled_inputs
from model_opt.compression.techniques.low_rank import _directions, _split
from model_opt.errors import TechniqueDidNothing


@pytest.mark.parametrize("share", ["0.75", "0.5", "0.25"])
def test_residual_network_shrinks_and_still_reads(share: str) -> None:
    recipe = trained()
    before = state(recipe.teacher)
    made = applied(recipe, low_rank=share)
    old, new = cost(recipe.teacher, recipe.example), cost(made, recipe.example)
    assert new.parameters < min(0.95, float(share) + 0.1) * old.parameters
    assert accuracy(made) > accuracy(recipe.teacher) - 0.06
    assert unchanged(recipe.teacher, before)
    survives(made, recipe.example)


def test_after_pruning() -> None:
    recipe = trained()
    pruned, both = applied(recipe, prune="0.25"), applied(recipe, prune="0.25", low_rank="0.5")
    assert cost(both, recipe.example).parameters < cost(pruned, recipe.example).parameters
    assert accuracy(both) > 0.85


def test_transformer() -> None:
    model, x = TinyViT().eval(), torch.randn(2, 3, 32, 32)
    made = applied(material(model, x, [torch.randn(32, 3, 32, 32)]), low_rank="0.5")
    assert cost(made, x).flops < 0.9 * cost(model, x).flops
    survives(made, x)


@pytest.mark.parametrize("layer", [nn.Linear(16, 24), nn.Conv2d(16, 24, 1), nn.Conv2d(16, 24, 3, 2, 1)])
def test_full_rank_is_exact_and_low_rank_inputs_need_no_more(layer: nn.Linear | nn.Conv2d) -> None:
    shape = (64, 16) if isinstance(layer, nn.Linear) else (64, 16, 6, 6)
    x = torch.randn(shape)
    rows = sampled_inputs("l", layer, x, 64, 0).flatten(0, 2)
    found = _directions("l", layer, rows, 1, None)
    with torch.no_grad():
        assert torch.allclose(_split(found, 16, 24)(x), layer(x), atol=1e-4)
        assert (found.power[:-1] >= found.power[1:]).all()


def test_a_model_with_nothing_to_factorise() -> None:
    x = torch.randn(8, 4)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    with pytest.raises(TechniqueDidNothing, match="low rank"):
        applied(material(model, x, [x]), low_rank="0.5")
