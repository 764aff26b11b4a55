import pytest
import torch
from architectures import ResidualCNN, TinyViT, UNet, unet_inputs
from recipes import applied, hooks_left, material, noisy_norms, state, survives, unchanged
from torch import Tensor, nn

from model_opt.compression.inputs import call
from model_opt.compression.samples import snr_db
from model_opt.compression.techniques.clean import Pass, PerUse, clean
from model_opt.errors import TechniqueDidNothing


class SamePadded(nn.Conv2d):
    """Pads by one more on the right and below, as TensorFlow does for stride 2."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))


class Crossed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4)  # batch second
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        y, _ = self.attention(x.transpose(0, 1), context.transpose(0, 1), context.transpose(0, 1))
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return self.head(self.layer(y.transpose(0, 1), src_mask=mask))


class Normed(nn.Module):
    """A convolution whose output is also used beside its norm: folding would change the function."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.plain, self.after = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.after(self.plain(self.norm(y) + y))


def test_residual_network_is_folded_exactly() -> None:
    model = noisy_norms(ResidualCNN(8))
    x = torch.randn(4, 1, 16, 16)
    before = state(model)
    made = applied(material(model, x, [x]), clean="fused")
    with torch.no_grad():
        assert snr_db(model(x), made(x)) > 80
    kinds = {type(m) for m in made.modules()}
    assert not kinds & {nn.BatchNorm2d, nn.Identity, nn.Dropout}
    assert PerUse in kinds  # the activation that every block uses twice
    assert unchanged(model, before)
    assert not hooks_left(model)
    survives(made, x)


def test_tracer_sees_neither_passes_nor_shared_activations() -> None:
    model = noisy_norms(ResidualCNN(8))
    clean(model, torch.randn(2, 1, 16, 16))
    assert any(isinstance(m, Pass) for m in model.modules())
    graph = torch.fx.symbolic_trace(model).graph
    used = [n.target for n in graph.nodes if n.op == "call_module"]
    assert len(used) == len(set(used))
    assert all(type(model.get_submodule(t)) in (nn.Conv2d, nn.ReLU, nn.Linear) for t in used)


def test_attention_becomes_linears_exactly() -> None:
    model = TinyViT().eval()
    x = torch.randn(3, 3, 32, 32)
    made = applied(material(model, x, [x]), clean="fused")
    with torch.no_grad():
        assert snr_db(model(x), made(x)) > 80
    assert not any(isinstance(m, nn.MultiheadAttention) for m in made.modules())
    assert isinstance(made.get_submodule("blocks.0.attention.qkv"), nn.Linear)
    survives(made, x)


def test_cross_attention_masks_and_batch_second() -> None:
    model = Crossed().eval()
    inputs = (torch.randn(2, 6, 32), torch.randn(2, 9, 32))
    with torch.no_grad():
        expected = model(*inputs)
        done = clean(model, inputs)
        assert done["attention"] == 2
        assert snr_db(expected, model(*inputs)) > 80


def test_same_padding_becomes_padding_and_a_plain_convolution() -> None:
    model = nn.Sequential(SamePadded(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
    x = torch.randn(2, 3, 16, 16)
    model(x)
    noisy_norms(model)
    with torch.no_grad():
        expected = model(x)
        done = clean(model, x)
        assert done == {"same padding": 1, "batch norm": 1}
        assert snr_db(expected, model(x)) > 80
    assert not any(isinstance(m, SamePadded) for m in model.modules())


class AsTensorFlow(nn.Conv2d):
    """Pads for the size that it sees."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for axis in (-1, -2):
            size, stride, reach = (
                x.shape[axis],
                self.stride[axis],
                (self.kernel_size[axis] - 1) * self.dilation[axis] + 1,
            )
            total = max((-(-size // stride) - 1) * stride + reach - size, 0)
            pads += [total // 2, total - total // 2]
        return self._conv_forward(nn.functional.pad(x, pads), self.weight, self.bias)


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"),
    [(3, 1, 1), (3, 2, 1), (5, 2, 1), (5, 3, 1), (3, 2, 2), (1, 1, 1), ((3, 5), (2, 1), 1)],
)
@pytest.mark.parametrize("size", [15, 16, 17])
def test_same_padding_follows_the_size(kernel, stride, dilation, size: int) -> None:
    model = nn.Sequential(
        AsTensorFlow(3, 8, kernel, stride, dilation=dilation), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    noisy_norms(model)
    with torch.no_grad():
        images = [torch.randn(2, 3, high, wide) for high in (13, 14, 16, 19) for wide in (16, 17)]
        expected = [model(x) for x in images]
        assert clean(model, torch.randn(2, 3, size, size))["same padding"] == 1
        assert all(snr_db(y, model(x)) > 80 for x, y in zip(images, expected, strict=True))
    assert not any(isinstance(m, AsTensorFlow) for m in model.modules())


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (nn.Sequential(nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=4), nn.BatchNorm2d(8), nn.Dropout()), (2, 8, 6, 6)),
        (
            nn.Sequential(nn.ConvTranspose2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8), nn.Dropout()),
            (2, 8, 6, 6),
        ),
        (nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(5), nn.Dropout()), (3, 5, 6)),
        (nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout()), (3, 5, 6)),  # as wide as there are places
        (nn.Sequential(nn.Conv1d(4, 8, 3), nn.BatchNorm1d(8), nn.Dropout()), (2, 4, 9)),
    ],
)
def test_a_norm_that_cannot_be_folded_stays(model: nn.Module, x: tuple[int, ...]) -> None:
    noisy_norms(model)
    inputs = torch.randn(x)
    with torch.no_grad():
        expected = model(inputs)
        assert clean(model, inputs)["does nothing"] == 1
        assert snr_db(expected, model(inputs)) > 80


class Padded(nn.Module):
    def __init__(self, heeds: bool) -> None:
        super().__init__()
        self.heeds = heeds
        self.inp, self.head = nn.Linear(8, 32), nn.Linear(32, 5)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        kept = (~padding if self.heeds else torch.ones_like(padding)).float().unsqueeze(-1)
        y = self.encoder(self.inp(x), src_key_padding_mask=padding) * kept
        return self.head(y.sum(1) / kept.sum(1))


@pytest.mark.parametrize("heeds", [True, False])
@pytest.mark.parametrize("shown", [True, False])
def test_an_encoder_with_padding_is_cleaned_where_that_is_the_same_for_padded_rows(heeds: bool, shown: bool) -> None:
    """torch's fast path has zeros at padded places, others have not: that matters where the model looks at those."""
    model, x = Padded(heeds).eval(), torch.randn(4, 6, 8)
    padding = torch.arange(6)[None] >= torch.tensor([6, 3, 4, 1])[:, None]
    with torch.no_grad():
        expected = model(x, padding), model(x, torch.zeros_like(padding))
        done = clean(model, (x, padding if shown else torch.zeros_like(padding)))
        assert done.get("attention") == (2 if heeds else None)
        assert snr_db(expected[0], model(x, padding)) > 80
        assert snr_db(expected[1], model(x, torch.zeros_like(padding))) > 80


def test_what_would_change_the_function_is_rolled_back() -> None:
    model = noisy_norms(Normed())
    x = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        expected = model(x)
        assert clean(model, x) == {"batch norm": 1}
        assert snr_db(expected, model(x)) > 80
    assert isinstance(model.norm, nn.BatchNorm2d)


def test_models_with_several_inputs() -> None:
    model, inputs = UNet().eval(), unet_inputs(2)
    made = applied(material(model, inputs, [inputs]), clean="fused")
    with torch.no_grad():
        assert snr_db(call(model, inputs), call(made, inputs)) > 80


def test_nothing_to_clean() -> None:
    x = torch.randn(2, 8)
    with pytest.raises(TechniqueDidNothing, match="nothing to rewrite"):
        applied(material(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval(), x, [x]), clean="fused")


@pytest.mark.soak
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "vit_b_16", "efficientnet_b0", "regnet_y_400mf"])
def test_torchvision(name: str) -> None:
    import torchvision

    model = noisy_norms(getattr(torchvision.models, name)(weights=None))
    x = torch.randn(2, 3, 224, 224)
    made = applied(material(model, x, [x]), clean="fused")
    with torch.no_grad():
        expected, found = model(x), made(x)
    assert torch.allclose(expected, found, atol=1e-3) and (not expected.any() or snr_db(expected, found) > 80)


@pytest.mark.parametrize("between", [[], [nn.AdaptiveAvgPool2d(1), nn.Flatten()], [nn.Flatten()]])
def test_a_batch_norm_behind_an_activation_is_folded_into_what_reads_it(between):
    width = 8 if between and isinstance(between[0], nn.AdaptiveAvgPool2d) else 8 * 36
    last = nn.Linear(width, 5) if between else nn.Conv2d(8, 5, 3)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), *between, last)
    for tensor in (model[2].running_mean, model[2].running_var, model[2].weight.data, model[2].bias.data):
        tensor.uniform_(0.5, 1.5)
    model.eval()
    x = torch.randn(4, 3, 8, 8)
    want = model(x)
    assert clean(model, x) == {"batch norm forward": 1}
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert torch.allclose(model(x), want, atol=1e-5)


def test_a_batch_norm_stays_where_borders_are_padded_or_another_reads_it():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.next = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)

        def forward(self, x):
            x = self.norm(self.conv(x).relu())
            return x + self.next(x)

    padded = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), nn.Conv2d(8, 5, 3, padding=1))
    for model in (padded, Two()):
        norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
        norm.bias.data += 1
        model.eval()
        assert "batch norm forward" not in clean(model, torch.randn(4, 3, 8, 8))
