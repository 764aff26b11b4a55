"""What a model takes and gives is found by calling it, and what is compiled answers rightly or refuses by name."""

import copy

import pytest
import torch
from compression_made import material, plan
from torch import Tensor, nn

from model_opt.compression.inputs import Inputs, answers, by_row, call, constants, join, rows, shared
from model_opt.compression.interface import look, output_names
from model_opt.compression.runtimes import runtime_decision
from model_opt.compression.runtimes.runtime_module import WithOriginal, taken_by
from model_opt.compression.signal_to_noise import signal_to_noise_db
from model_opt.errors import InvalidInput, MeasurementFailed, TechniqueError
from model_opt.search.model_signature import Family

torch.manual_seed(0)


class Net(nn.Module):
    """A small network; `around` is what it does besides."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, 4))


class Plain(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Centred(Net):
    def forward(self, x: Tensor) -> Tensor:
        made = self.body(x)
        return made - made.mean(0)


class Scaled(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x / x.abs().max())


class Similarities(Net):
    def forward(self, x: Tensor) -> Tensor:
        made = nn.functional.normalize(self.body(x), dim=1)
        return made @ made.T


class PreviousRow(Net):
    """Each row's answer depends on the row before: the first half has the same alone."""

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.cumsum(0))


class AtOnce(Net):
    """Takes another way for a single row."""

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) if x.shape[0] > 1 else 2 * self.body(x)


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.head = nn.LSTM(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x)[0])


class WithState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.GRU(8, 16, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        made, state = self.net(x)
        return made[:, -1], state


class Dropping(Net):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.body(x), 0.5, training=True)


class Counting(Net):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.body(x) * self.calls


class Masked(nn.Module):
    """A mask `[places, places]` that all rows share, and a list of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.attend, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 4)

    def forward(self, parts: list[Tensor], mask: Tensor, scale: float = 1.0) -> dict[str, Tensor | None]:
        x = parts[0] + parts[1]
        made = self.attend(x, x, x, attn_mask=mask, need_weights=False)[0]
        return {"scores": self.head(made.mean(1)) * scale, "places": made, "nothing": None}


class Bags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(50, 8)

    def forward(self, ids: Tensor, starts: Tensor) -> Tensor:
        return self.bag(ids, starts)


class Graph(Net):
    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        around = torch.zeros_like(x).index_add(0, edges[1], x[edges[0]])
        return self.body(x + around)


X, SEQUENCES = torch.randn(6, 8), torch.randn(6, 5, 8)
MODELS: dict[str, tuple[nn.Module, Inputs, bool]] = {
    "plain": (Plain(), X, False),
    "one row": (Plain(), X[:1], False),
    "centred": (Centred(), X, True),
    "centred, one row": (Centred(), X[:1], True),
    "scaled": (Scaled(), X, True),
    "similarities": (Similarities(), X, True),
    "previous row": (PreviousRow(), X, True),
    "at once": (AtOnce(), X, False),
    "time first": (TimeFirst(), SEQUENCES, True),
    "with state": (WithState(), SEQUENCES, True),
    "masked": (Masked(), ([SEQUENCES, SEQUENCES.roll(1, 0)], torch.zeros(5, 5)), False),
    "bags": (Bags(), (torch.randint(50, (12,)), torch.tensor([0, 4, 9])), True),
    "graph": (Graph(), (X, torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]])), True),
}


@pytest.mark.parametrize("name", MODELS)
def test_rows_that_depend_on_one_another_are_found(name: str) -> None:
    model, example, coupled = MODELS[name]
    kept = [leaf.clone() for leaf in answers(nn.Identity(), example)] if isinstance(example, Tensor) else None
    found = look(copy.deepcopy(model).eval(), example)
    assert (found.coupled, found.random) == (coupled, False)
    assert kept is None or torch.equal(kept[0], example)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.head = nn.Embedding(300, 8), nn.Embedding(7, 8), nn.Linear(8, 4)

    def forward(self, ids: Tensor, places: Tensor, mask: Tensor) -> Tensor:
        return self.head((self.words(ids) + self.places(places)) * mask[..., None]).mean(1)


@pytest.mark.parametrize("runtime_name", ["onnxruntime", "openvino"])
def test_numbers_that_point_at_nothing_are_refused(runtime_name: str) -> None:
    pytest.importorskip(runtime_name)
    model = Words().eval()
    ids, places, mask = torch.randint(50, (4, 6)), torch.arange(6).repeat(4, 1), torch.ones(4, 6, dtype=torch.int32)
    asked = material(model, (ids, places, mask), Family.OTHER)
    assert look(model, (ids, places, mask)).ranges == ((0, 299), (0, 6), None)
    made = runtime_decision.apply(copy.deepcopy(model), runtime_name, None, plan(runtime=runtime_name), asked)
    assert made.layout.takes()[0] == "ids: int64 [batch, 6], 0 to 299"
    with torch.no_grad():
        for given in ((ids + 249, places, mask), (ids, places + 1, mask), (ids, places, 7 * mask)):
            assert signal_to_noise_db(model(*given), made(*given)) > 40
        for given, said in (
            ((ids + 260, places, mask), "ids holds"),
            ((ids, places - 1, mask), "places holds -1 to 4"),
        ):
            with pytest.raises(InvalidInput, match=said):
                made(*given)
            with pytest.raises(IndexError):
                model(*given)


@pytest.mark.parametrize("model", [Dropping(), Counting()], ids=["dropout", "counts"])
def test_a_model_that_answers_in_two_ways_is_random(model: nn.Module) -> None:
    assert look(model.eval(), X).random


def others(name: str) -> list[Inputs]:
    """More inputs that the model takes: other numbers, orders and batches, none at all, other constants and sizes."""
    _, example, _ = MODELS[name]
    given: list[Inputs] = [by_row(lambda t: t.flip(0), example), by_row(lambda t: t[:1], example), rows(example, 0, 2)]
    if name not in ("bags", "graph"):
        given += [join([example] * 3), by_row(lambda t: t[:0], example)]
    if name == "masked":
        parts, mask = example
        given += [(parts, mask - torch.full_like(mask, 9).triu(1)), (parts, mask, 2.0), (parts[:1] * 2, mask)]
        given += [([part[:, :3] for part in parts], mask[:3, :3])]
    if isinstance(example, Tensor):
        given += [example.double(), example.to(torch.bfloat16), example.unsqueeze(0), example.to_sparse()]
        given += [example.transpose(0, -1).contiguous().transpose(0, -1)]
    return given


@pytest.mark.parametrize("runtime_name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", MODELS)
def test_what_is_compiled_answers_rightly_or_refuses_by_name(name: str, runtime_name: str) -> None:
    pytest.importorskip(runtime_name)
    model, example, _ = MODELS[name]
    model = model.eval()
    made_of = copy.deepcopy(model)
    try:
        made = runtime_decision.apply(
            made_of, runtime_name, None, plan(runtime=runtime_name), material(model, example, Family.OTHER)
        )
    except (TechniqueError, MeasurementFailed) as error:
        assert str(error), "refused without a reason"
        return
    answered = 0
    for inputs in [example, *others(name)]:
        with torch.no_grad():
            try:
                got = answers(made, inputs)
            except (InvalidInput, TechniqueError):
                continue
        given = inputs.float() if isinstance(inputs, Tensor) else inputs
        wanted = answers(model, given)
        assert [t.shape for t in got] == [t.shape for t in wanted]
        assert all(t.numel() == 0 for t in wanted) or signal_to_noise_db(wanted, got) > 40
        answered += 1
    assert answered > 0


class Optional(Net):
    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        return self.body(x if mask is None else x * mask) * scale


@pytest.mark.parametrize("example", [X, (X, None), {"x": X}, {"x": X, "scale": 1.0}], ids=str)
def test_a_compiled_model_is_called_as_the_original_is(example: Inputs) -> None:
    pytest.importorskip("onnxruntime")
    model = Optional().eval()
    asked = material(model, example, Family.OTHER)
    made = runtime_decision.apply(copy.deepcopy(model), "onnxruntime", None, plan(runtime="onnxruntime"), asked)
    with torch.no_grad():
        wanted = model(X)
        for args, kwargs in (
            ((X,), {}),
            ((), {"x": X}),
            ((X, None), {}),
            ((X,), {"mask": None, "scale": 1.0}),
            ((), {"mask": None, "x": X}),
        ):
            assert torch.allclose(made(*args, **kwargs), wanted, atol=1e-4)
        for args, kwargs, said in (
            ((X, X), {}, "mask is a tensor"),
            ((X,), {"scale": 2.0}, r"scale is 2\.0"),
            ((), {"mask": None}, "x is missing"),
            ((X,), {"x": X}, "x is given by place and by name"),
            ((X,), {"bias": 3}, "bias is 3"),
            ((None,), {}, "x is None"),
        ):
            with pytest.raises(InvalidInput, match=said):
                made(*args, **kwargs)


def test_outputs_are_called_by_their_keys() -> None:
    model, example, _ = MODELS["masked"]
    assert output_names(model.eval(), example) == ["scores", "places"]
    assert output_names(MODELS["with state"][0], SEQUENCES) == ["output 1", "output 2"]
    assert output_names(MODELS["plain"][0], X) == ["output 1"]


def test_what_a_compiled_model_takes_is_told() -> None:
    pytest.importorskip("onnxruntime")
    model, example, _ = MODELS["masked"]
    asked = material(model.eval(), (*example, 2.0), Family.OTHER)
    made = runtime_decision.apply(copy.deepcopy(model), "onnxruntime", None, plan(runtime="onnxruntime"), asked)
    places = "float32 [batch, 5, 8]"
    said = (f"parts[0]: {places}", f"parts[1]: {places}", "mask: float32 [5, 5]", "scale: 2.0, built in")
    assert taken_by(made) == said and taken_by(model) == ()
    assert taken_by(WithOriginal(made, model))[-1] == "anything else: the original answers"


def test_what_rows_share_stays_as_it_is() -> None:
    _, example, _ = MODELS["masked"]
    one = rows(example, 1, 3)
    assert torch.equal(one[0][0], SEQUENCES[1:3]) and torch.equal(one[1], example[1])
    both = join([example, example])
    assert len(both[0][1]) == 12 and torch.equal(both[1], example[1])
    assert shared((*example, 2.0)) == [2.0, torch.zeros(5, 5).tolist()] and constants(example) == []
    with pytest.raises(InvalidInput, match="not built alike"):
        join([example, {"x": X}])
    assert call(nn.Identity(), X) is X
