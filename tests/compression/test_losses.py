"""What is lost is told by the kind of an output, and nothing of an output goes unseen."""

import math

import pytest
import torch
from torch import Tensor, nn

from model_opt.compression.evaluation.judge import DataJudge, FunctionJudge
from model_opt.compression.evaluation.kind import Declared, FloatTargets, declared_classes
from model_opt.errors import InvalidInput, MeasurementFailed, UnknownName

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

    assert declared_classes(Net()) == Declared(layers=frozenset({3}))
    assert declared_classes(nn.Sequential(nn.Linear(4, 6))) == Declared()


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
        (97.3, "divide a percentage"),
        (-0.4, "min"),
        (math.nan, "nan"),
        ("high", "an accuracy"),
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


def test_several_labels_a_row_are_judged_by_row() -> None:
    wanted = (normal(20, seed=3) > 1.5).long()  # mostly zeros
    scores = 6 * wanted - 3 + 0.1 * normal(20)
    value, judge = lost(scores, change=lambda made: [made[0] - 6], labels=wanted)
    assert judge.baseline == 1 and value == pytest.approx(float((wanted.sum(1) > 0).double().mean()), abs=0.01)
    assert lost(scores.sigmoid(), change=lambda made: [made[0] / 3], labels=wanted)[0] > 0.5
    assert lost(scores, change=lambda made: [made[0] * 2], labels=wanted)[0] == 0


@pytest.mark.parametrize("shape", [(5, 6, 6), (5, 30), (30, 5)])
def test_a_class_for_each_place_is_judged_by_place(shape: tuple[int, ...]) -> None:
    axis = 2 if shape == (30, 5) else 1
    scores = normal(*shape)
    labels = scores.argmax(axis)
    labels[:, 0] = -100 if shape != (5, 6, 6) else 255  # no label there
    value, judge = lost(scores, change=lambda made: [-made[0]], labels=labels)
    assert judge.baseline == 1 and value == 1
    assert lost(scores, change=lambda made: [made[0] * 3], labels=labels)[0] == 0
    with pytest.raises(InvalidInput, match="from 1 to 5, but the model's output tells 5 classes"):
        lost(scores, change=None, labels=scores.argmax(axis) + 1)


def test_labels_of_no_output_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"labels of calibration_data \(\[32, 7, 9\]\) are of none"):
        lost(normal(4), change=None, labels=torch.zeros(ROWS, 7, 9, dtype=torch.long))


def test_rows_of_length_one_are_embeddings() -> None:
    rows = nn.functional.normalize(normal(32), dim=1)
    value, judge = lost(rows, change=lambda made: [made[0] + 0.002 * (1e3 * made[0]).sin()])
    assert 0 < value < 0.01 and not judge.warnings
    assert lost(rows, change=lambda made: [made[0].roll(1, 1)])[0] > 0.9
    parts = nn.functional.normalize(normal(512), dim=1)
    common, own = parts[:1], parts[1:].repeat_interleave(2, 0)[: ROWS - 2]  # each row has a twin
    twins = nn.functional.normalize(3 * common + torch.cat([own, own[:2]]), dim=1)[:ROWS]
    others = nn.functional.normalize(3 * common + torch.cat([own, own[:2]]).roll(2, 0), dim=1)[:ROWS]

    def parted(made: list[Tensor]) -> list[Tensor]:
        made[0][1::2] = others[: len(made[0])][1::2]
        return made

    judge = DataJudge([torch.arange(ROWS)], Answers(twins), "fidelity", None, "embedding")
    drop = judge.whole(Answers(twins, change=parted))
    assert drop.of == "" and drop.value > 0.9  # their cosines are nearly what they were: their neighbours are others


def test_the_user_says_what_an_output_is() -> None:
    logits = normal(6)
    rows = torch.arange(ROWS).split(32)

    def judged(kind, change, *answers: Tensor):
        judge = DataJudge(rows, Answers(*(answers or (logits,))), "fidelity", None, kind)
        return judge.whole(Answers(*(answers or (logits,)), change=change)).value, judge

    def sharper(made):
        return [made[0] * 3, *made[1:]]

    for kind, least, most in (("classes", 0, 0), ("labels", 0, 0), ("quantities", 1.9, 2.1), ("embedding", 0, 1e-6)):
        value, judge = judged(kind, sharper)
        assert least <= value <= most, kind
        assert not any("classes or quantities" in warning for warning in judge.warnings)
    assert judged("labels", lambda made: [-made[0]])[0] == pytest.approx(1, abs=0.01)
    assert judged({"output 1": "labels"}, lambda made: [made[0], made[1] * 2], logits, normal(3))[0] > 0.5
    with pytest.raises(UnknownName, match="'boxes'"):
        judged("boxes", sharper)
    with pytest.raises(UnknownName, match="'logits'"):
        judged({"logits": "classes"}, sharper)


def test_an_original_that_answers_alike_is_said() -> None:
    _, judge = lost(torch.ones(ROWS, 1), change=lambda made: made)
    assert any("answers all of the data alike" in warning for warning in judge.warnings)


def test_every_outputs_loss_is_kept() -> None:
    class Named(Answers):
        def forward(self, rows: Tensor) -> object:
            scores, *others = (answer[rows] for answer in self.answers)
            return {"scores": self.change(scores), "deep": {"first": others[0], "rest": tuple(others[1:])}}

    scores, _ = sure(5)
    answers = (scores, normal(3), normal(2))
    judge = DataJudge(torch.arange(ROWS).split(32), Named(*answers), "fidelity")
    drop = judge.whole(Named(*answers, change=lambda made: -made))
    assert drop.of == "scores: classes" and drop.value > 0.9
    assert drop.others.keys() >= {"deep.first: relative error", "deep.rest.output 1: relative error"}
    assert max(drop.others.values()) < 0.1


@pytest.mark.parametrize(
    ("before", "after", "drop"),
    [
        (0.9, 0.8, 0.1),
        ((2.0, "min"), (2.2, "min"), 0.1),
        ((2.0, "min"), (1.8, "min"), -0.1),
        ((30.0, "max"), (27.0, "max"), 0.1),
        ((0.1, "min"), (0.2, "min"), 0.1),
        ({"mAP": 0.5, "loss": (2.0, "min")}, {"mAP": 0.49, "loss": (3.0, "min")}, 0.5),
    ],
)
def test_scores_with_a_direction(before: object, after: object, drop: float) -> None:
    returned = iter([before, after])
    judge = FunctionJudge(lambda model: next(returned), nn.Identity())
    assert judge.whole(nn.Identity()).value == pytest.approx(drop)
    assert 0 <= judge.baseline <= 1


@pytest.mark.parametrize("returned", [97.2, 2.31, -0.1, {"val_loss": 0.3}, {"WER": 0.1}, (0.3, "less"), math.nan])
def test_a_score_that_may_be_a_loss_is_asked_about(returned: object) -> None:
    with pytest.raises(InvalidInput, match="eval_fn returned"):
        FunctionJudge(lambda model: returned, nn.Identity())


def test_memory_that_runs_out_in_eval_fn_is_no_wrong_answer() -> None:
    calls = iter([0.9])

    def evaluate(model: nn.Module) -> float:
        for value in calls:
            return value
        raise RuntimeError("CUDA out of memory")

    judge = FunctionJudge(evaluate, nn.Identity())
    with pytest.raises(RuntimeError, match="out of memory"):
        judge.whole(nn.Identity())


def with_targets(answers: Tensor, targets: Tensor, change) -> float:
    told = FloatTargets.of(list(targets.split(32)))
    judge = DataJudge(torch.arange(ROWS).split(32), Answers(answers, num_classes=4), "fidelity", targets=told)
    return judge.whole(Answers(answers, change=change)).value


def test_targets_that_are_no_labels_say_that_an_output_is_quantities() -> None:
    answers = normal(4) + torch.tensor([10.0, 0, 0, 0])  # one class for all, if they were scores

    def change(made):
        return [made[0] + torch.tensor([0.0, 0.5, 0.0, 0.0])]

    assert with_targets(answers, normal(4), change) == pytest.approx(0.5, rel=0.1)
    assert with_targets(answers, normal(3), change) < 0.01  # of another output: the model's own word counts
    shares = answers.softmax(1)
    assert with_targets(shares, normal(4).softmax(1), lambda made: [(made[0] * 1.5)]) > 0.4  # both, the worse counts


@pytest.mark.parametrize(("scale", "classes"), [(0.1, False), (9.0, True)])
def test_a_last_layers_name_counts_and_is_said_where_the_data_does_not_say_so(scale: float, classes: bool) -> None:
    class Net(nn.Module):
        def __init__(self, change=lambda made: made) -> None:
            super().__init__()
            self.fc, self.change = nn.Linear(4, 4, bias=False), change

        def forward(self, x: Tensor) -> Tensor:
            return self.change(scale * self.fc(x))

    torch.manual_seed(0)
    model, other = Net(), Net(lambda made: 1.5 * made)
    nn.init.eye_(model.fc.weight)
    nn.init.eye_(other.fc.weight)
    judge = DataJudge(normal(4).split(32), model, "fidelity")
    assert judge.whole(other).value == pytest.approx(0.0, abs=0.05)
    assert any("are taken for scores of classes" in warning for warning in judge.warnings) is not classes


def test_few_rows_say_little_of_rare_errors() -> None:
    answers = normal(2)
    judge = DataJudge(torch.arange(ROWS).split(32), Answers(answers), "fidelity", judge_as="quantities")
    drop = judge.whole(Answers(answers, change=lambda made: [made[0] + 0.02]))  # alike everywhere
    assert drop.error == pytest.approx(0.5 * drop.value * math.sqrt(29 / ROWS), rel=1e-6)
