"""What is lost is told by the kind of an output, and nothing of an output goes unseen."""

import math

import pytest
import torch
from torch import Tensor, nn

from model_opt.compression.accuracy import DataJudge, FunctionJudge
from model_opt.compression.losses import declared_classes
from model_opt.errors import InvalidInput, MeasurementFailed

ROWS = 256


class Answers(nn.Module):
    """Answers the rows whose numbers it is given; `change` does something to what it answers."""

    def __init__(self, *answers: Tensor, change=lambda made: made, **declared: int) -> None:
        super().__init__()
        self.answers, self.change = answers, change
        for name, number in declared.items():
            setattr(self, name, number)

    def forward(self, rows: Tensor) -> object:
        made = self.change([answer[rows].clone() for answer in self.answers])
        return made[0] if len(made) == 1 else tuple(made)


def lost(*answers: Tensor, change, labels: Tensor | None = None, **declared: int) -> tuple[float, DataJudge]:
    rows = torch.arange(ROWS).split(32)
    parts = None if labels is None else labels.split(32)
    judge = DataJudge(rows, Answers(*answers, **declared), "fidelity", parts)
    assert judge.whole(Answers(*answers)).value == pytest.approx(0, abs=1e-6)
    drop = judge.whole(Answers(*answers, change=change))
    return drop.value, judge


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(ROWS, *shape, generator=torch.Generator().manual_seed(seed))


def sure(classes: int) -> tuple[Tensor, Tensor]:
    """Scores as a trained classifier has them, and the classes."""
    wanted = torch.arange(ROWS) % classes
    return normal(classes) + 8 * nn.functional.one_hot(wanted, classes), wanted


def test_two_quantities_are_no_two_classes() -> None:
    pressure = torch.stack([120 + 8 * normal(seed=1), 70 + 6 * normal(seed=2)], 1)  # the first is always the larger

    def change(made):
        return [made[0] + torch.tensor([0.8, 0.0])]

    value, judge = lost(pressure, change=change)
    assert value == pytest.approx(0.1, rel=0.1)
    assert any("may be scores of classes or quantities" in warning for warning in judge.warnings)


@pytest.mark.parametrize("channel", [0, 3, 7])
def test_a_small_channel_is_not_hidden_by_a_large_one(channel: int) -> None:
    scale = 10.0 ** torch.arange(8)

    def ruined(made):
        return [made[0].index_fill(1, torch.tensor([channel]), 0)]

    assert lost(normal(8) * scale, change=ruined)[0] > 0.5
    assert lost(normal(8) * scale + 1e9, change=lambda made: [made[0].roll(1, 0)])[0] > 0.5


@pytest.mark.parametrize("place", [0, 1, 2])
def test_every_output_is_looked_at(place: int) -> None:
    scores, _ = sure(5)
    answers = (scores, normal(3, 8, 8), normal(16))

    def ruin(made: list[Tensor]) -> list[Tensor]:
        made[place] = made[place].roll(1, 0)
        return made

    rows = torch.arange(ROWS).split(32)
    judge = DataJudge(rows, Answers(*answers), "fidelity")
    drop = judge.whole(Answers(*answers, change=ruin))
    assert drop.value > 0.5
    assert drop.of.startswith(f"output {place + 1}: ")


def test_classes_are_told_by_name_by_sums_and_by_data() -> None:
    scores, _ = sure(10)
    flat = 0.1 * normal(10)

    def nudge(made):
        return [made[0] * 1.5]  # no class changes; as quantities half of everything is lost

    assert lost(scores, change=nudge)[0] == 0
    assert lost(flat, change=nudge)[0] == pytest.approx(0.5, rel=0.1)
    assert lost(flat, change=nudge, num_classes=10)[0] == 0

    def sharper(made):
        return [(made[0].log() * 1.5).softmax(1)]

    assert lost(flat.softmax(1), change=sharper)[0] < 0.1  # no class changes; of others some might
    assert lost(flat.log_softmax(1), change=nudge)[0] == 0
    maps = normal(4, 6, 6)
    assert lost(maps, change=nudge, num_classes=4)[0] == 0
    assert lost(maps, change=nudge)[0] == pytest.approx(0.5, rel=0.1)
    tokens = normal(5, 30)
    assert lost(tokens, change=nudge, vocab_size=30)[0] == 0
    assert lost(tokens, change=lambda made: [made[0].roll(1, 1)], vocab_size=30)[0] > 0.9


def test_the_last_layers_name_declares_classes() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.fc = nn.Linear(4, 6), nn.Linear(6, 3)

    assert declared_classes(Net()) == {3}
    assert declared_classes(nn.Sequential(nn.Linear(4, 6))) == frozenset()


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("probability", [False, True])
def test_one_logit_is_judged_at_its_sign(shape: tuple[int, ...], probability: bool) -> None:
    scores = normal(*shape, seed=3) + 0.5
    labels = (scores.reshape(ROWS) > 0).long()
    labels[:16] = 1 - labels[:16]
    scores = scores.sigmoid() if probability else scores
    middle = 0.5 if probability else 0.0
    value, judge = lost(scores, labels=labels, change=lambda made: [2 * middle - made[0]])
    assert judge.baseline == pytest.approx(1 - 16 / ROWS)
    assert value == pytest.approx(1 - 32 / ROWS)


@pytest.mark.parametrize(("labels", "said"), [(lambda y: y + 1, "from 1 to 5"), (lambda y: y - 1, "from -1 to 3")])
def test_labels_that_cannot_be_this_models_are_refused(labels, said: str) -> None:
    scores, wanted = sure(5)
    with pytest.raises(InvalidInput, match=f"{said}.*5 classes, 0 to 4"):
        lost(scores, labels=labels(wanted), change=lambda made: made)
    with pytest.raises(InvalidInput, match="2 classes, 0 to 1"):
        lost(normal(1), labels=wanted, change=lambda made: made)


def test_what_makes_the_figure_doubtful_is_said() -> None:
    scores, wanted = sure(5)
    _, judge = lost(scores, labels=wanted.roll(1), change=lambda made: made)
    assert "no more than always naming the commonest class" in judge.warnings[0]
    few = DataJudge([torch.arange(8)], Answers(scores), "fidelity", [wanted[:8]])
    assert few.warnings == ("accuracy is told from 8 rows: that says little",)


def test_other_outputs_are_judged_beside_labelled_ones() -> None:
    scores, wanted = sure(5)
    boxes = normal(4, seed=5)
    value, judge = lost(scores, boxes, labels=wanted, change=lambda made: [made[0], made[1] + 1])
    assert judge.baseline == 1.0
    assert value == pytest.approx(1.0, rel=0.1)


def test_whole_numbers_and_flags_are_compared_one_by_one() -> None:
    ids = torch.arange(ROWS)[:, None].repeat(1, 4)

    def change(made: list[Tensor]) -> list[Tensor]:
        made[0][:, 0] += 1
        return made

    assert lost(ids, change=change)[0] == pytest.approx(0.25)
    assert lost(ids > 100, change=lambda made: [~made[0]])[0] == 1


def test_other_shapes_and_nan_are_no_accuracy() -> None:
    with pytest.raises(MeasurementFailed, match="has shape"):
        lost(normal(4), change=lambda made: [made[0][:, :3]])
    with pytest.raises(MeasurementFailed, match="not finite"):
        lost(normal(4), change=lambda made: [made[0] * math.nan])


def test_inputs_that_a_model_changes_are_judged_as_they_were() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sub_(1).mul_(2)

    batches = list(normal(4).split(32))
    kept = [batch.clone() for batch in batches]
    judge = DataJudge(batches, InPlace(), "fidelity")
    assert judge.whole(InPlace()).value == pytest.approx(0, abs=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(batches, kept, strict=True))


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (97.3, "Divide a percentage"),
        (-0.4, "exp"),
        (math.nan, "nan"),
        ("high", "a number"),
        ({}, "empty"),
        ({"mAP": 41}, "'mAP'"),
    ],
)
def test_what_an_eval_fn_returns_is_a_share_or_asked_about(returned: object, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        FunctionJudge(lambda model: returned, nn.Identity())


def test_of_several_figures_the_one_that_loses_most_counts() -> None:
    figures = {"original": {"mAP": 0.41, "recall": 0.9}, "made": {"mAP": 0.4, "recall": 0.7}}
    made = nn.Identity()
    judge = FunctionJudge(lambda model: figures["made" if model is made else "original"], nn.ReLU())
    assert judge.baseline == 0.41
    assert (judge.whole(made).value, judge.whole(made).of) == (pytest.approx(0.2), "recall")


def test_an_eval_fn_that_raises_is_named() -> None:
    def broken(model: nn.Module) -> float:
        raise KeyError("labels")

    with pytest.raises(InvalidInput, match="eval_fn raised KeyError: 'labels'"):
        FunctionJudge(broken, nn.Identity())
