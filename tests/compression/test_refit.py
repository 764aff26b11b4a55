import pytest
import torch
from architectures import ResidualCNN
from recipes import accuracy, applied, hooks_left, material, noisy_norms, trained
from torch import nn

from model_opt.compression.inputs import batch_size
from model_opt.compression.samples import outputs_of, positions, sample, sampled_inputs, snr_db
from model_opt.compression.techniques import refit


@pytest.mark.parametrize("ratio", ["0.25", "0.5"])
def test_rescues_a_pruned_network(ratio: str) -> None:
    recipe = trained()
    dense, rescued = accuracy(recipe.teacher), accuracy(applied(recipe, prune=ratio))
    bare = accuracy(applied(recipe, to_the_last=False, prune=ratio))
    assert dense > 0.95
    assert rescued > dense - 0.06
    assert rescued > bare + 0.2


def test_leaves_an_intact_model_alone() -> None:
    recipe = trained()
    cleaned = applied(recipe, clean="fused")
    before = cleaned.state_dict()["head.weight"].clone()
    assert refit.refit(cleaned, recipe) == 0
    assert torch.equal(cleaned.state_dict()["head.weight"], before)
    assert not hooks_left(cleaned)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 12, 3, stride=2, padding=1),
        nn.Conv2d(8, 12, (3, 1), padding="same", dilation=2),
        nn.Conv2d(8, 8, 3, groups=8, bias=False),
        nn.Conv2d(8, 12, 1, groups=4),
    ],
)
def test_sampled_rows_times_weight_are_the_sampled_outputs(layer: nn.Conv2d) -> None:
    x = torch.randn(5, 8, 16, 14)
    rows = sampled_inputs("l", layer, x, 5, 0)
    model = nn.Sequential()
    model.add_module("l", layer)
    wanted = outputs_of(model, x, 0)["l"]
    weight = layer.weight.reshape(layer.groups, -1, rows.shape[-1])
    made = torch.einsum("nsgf,gof->nsgo", rows, weight).flatten(2)
    made = made if layer.bias is None else made + layer.bias
    assert torch.allclose(made, wanted, atol=1e-5)


@pytest.mark.parametrize("rows", [6, 200])
def test_recovers_a_linear_map_in_primal_and_dual_form(rows: int) -> None:
    make = torch.Generator().manual_seed(0)
    truth = nn.Linear(24, 5)
    X = torch.randn(rows, 4, 1, 24, generator=make)
    layer = nn.Linear(24, 5, bias=False)
    before = snr_db(truth(X.flatten(0, 2)), layer(X.flatten(0, 2)))
    with torch.no_grad():
        Y = truth(X.squeeze(2))
        assert refit.solve(layer, X, Y)
        after = snr_db(Y, layer(X.squeeze(2)))
    assert after > before + (3 if rows < 10 else 40)
    assert layer.bias is not None


def test_positions_depend_on_the_layer_and_nothing_else() -> None:
    assert torch.equal(positions("a", 4, 9, 0), torch.arange(9).expand(4, 9))
    assert torch.equal(positions("a", 4, 900, 0), positions("a", 4, 900, 0))
    assert not torch.equal(positions("a", 4, 900, 0), positions("b", 4, 900, 0))


def test_sample_takes_batches_until_there_are_enough() -> None:
    batches = [torch.zeros(16, 1, 8, 8) for _ in range(64)]
    assert batch_size(sample(batches)) == 512
    assert batch_size(sample([torch.zeros(64, 3, 448, 448)])) == 32


def test_targets_are_recorded_once() -> None:
    model = noisy_norms(ResidualCNN(8))
    x = torch.randn(4, 1, 8, 8)
    recipe = material(model, x, [x])
    assert refit.targets(recipe) is refit.targets(recipe)
