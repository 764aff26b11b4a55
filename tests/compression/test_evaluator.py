"""Applying, timing and judging plans."""

import itertools
import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from architectures import ResidualCNN
from torch import nn
from torchvision.models import resnet18

from model_opt.autotuner.constraints import Constraints
from model_opt.compression.evaluation.apply import steps
from model_opt.compression.evaluation.evaluator import CompressionEvaluator, Task, kept_model
from model_opt.compression.evaluation.judge import DataJudge, FunctionJudge
from model_opt.compression.evaluation.losses import expected_changes
from model_opt.compression.evaluation.time_pair import Paired, time_pair
from model_opt.compression.machine import inspect
from model_opt.compression.runtimes.size import size_bytes
from model_opt.compression.save_model import load_model
from model_opt.compression.sign_model import sign_model
from model_opt.compression.space import build_space
from model_opt.compression.technique import Technique, techniques_of
from model_opt.errors import InvalidInput, MeasurementFailed, TechniqueError, UnknownName
from model_opt.search.evaluator import Purpose
from model_opt.search.plan import Choice, Plan

IMAGES = torch.randn(96, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def plan(**options):
    return Plan(tuple(Choice(decision=name, option=option) for name, option in options.items()))


def staged(**options):
    return Plan(tuple(Choice(decision=name.replace("__", "/"), option=o) for name, o in options.items()))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return ResidualCNN(16).eval()


@pytest.fixture
def evaluator(model, tmp_path):
    batches = list(IMAGES.split(16))
    return CompressionEvaluator(
        Task(model=model, example=IMAGES[:4], fit=batches[:3], held_out=batches[3:], keep=tmp_path)
    )


class Constant(nn.Module):
    """Answers class `wrong` for the first `count` rows it ever sees, the inputs themselves afterwards."""

    def __init__(self, wrong=0, count=0):
        super().__init__()
        self.wrong, self.left = wrong, count

    def forward(self, x):
        made = x.clone()
        rows = min(self.left, len(x))
        made[:rows] = nn.functional.one_hot(torch.tensor(self.wrong), x.shape[1]).float() * 99
        self.left -= rows
        return made


def test_fidelity_is_the_share_of_rows_that_keep_their_class():
    rows = nn.functional.one_hot(torch.arange(100) % 4 + 1, 6).float()
    judge = DataJudge(list(rows.split(20)), Constant(), "fidelity")
    drop = judge.whole(Constant(0, 7))
    assert (drop.value, drop.rows, drop.whole) == (pytest.approx(0.07), 100, True)
    assert drop.error == pytest.approx(math.sqrt(100 * 0.07 * 0.93 + 0.5) / 100)
    part = judge.part(Constant(0, 7))
    assert part.rows == 80 and not part.whole  # 64 rows are wanted, batches are not cut


def noisy(scores, amount, seed):
    return scores + amount * torch.randn(scores.shape, generator=torch.Generator().manual_seed(seed))


def test_the_share_to_be_expected_varies_less_than_the_share_counted():
    scores = 3 * torch.randn(40_000, 5, generator=torch.Generator().manual_seed(0))
    made = noisy(scores, 0.05, 1)
    truth = float((made.argmax(1) != scores.argmax(1)).double().mean())
    pairs = list(zip(scores.split(200), made.split(200), strict=True))
    counted = np.array([float((after.argmax(1) != before.argmax(1)).double().mean()) for before, after in pairs])
    expected = np.array([expected_changes(before, after) for before, after in pairs])
    assert expected.mean() == pytest.approx(truth, rel=0.05)
    assert np.mean((expected - truth) ** 2) < 0.6 * np.mean((counted - truth) ** 2)
    # and where no row happened to change its class, some are expected to
    assert (counted == 0).any() and expected[counted == 0].mean() > 0.3 * truth
    assert expected_changes(scores[:200], scores[:200]) == 0


def test_the_drop_is_never_less_than_what_can_be_counted():
    scores = 10 * torch.randn(100, 4, generator=torch.Generator().manual_seed(2))
    for amount in (0.01, 0.1, 1.0):
        made = noisy(scores, 10 * amount, 3)
        judge = DataJudge([scores], nn.Identity(), "fidelity")
        counted = float((made.argmax(1) != scores.argmax(1)).double().mean())
        assert judge.whole(_Answers(made)).value == pytest.approx(max(counted, expected_changes(scores, made)))


class _Answers(nn.Module):
    def __init__(self, answers):
        super().__init__()
        self.answers = answers

    def forward(self, x):
        return self.answers


def test_what_is_no_classifier_is_judged_by_relative_error():
    maps = torch.randn(8, 3, 4, 4)
    maps -= maps.mean((0, 2, 3), keepdim=True)
    judge = DataJudge([maps], nn.Identity(), "fidelity")
    scaled = nn.Conv2d(3, 3, 1, bias=False)
    scaled.weight.data = 0.9 * torch.eye(3)[:, :, None, None]
    assert judge.whole(scaled).value == pytest.approx(0.1, abs=1e-5)


def test_labels_are_compared_row_by_row_with_the_originals_answers():
    rows = nn.functional.one_hot(torch.arange(50) % 5, 5).float()
    labels = torch.arange(50) % 5
    labels[:5] = 4 - labels[:5]  # the original is wrong on four of these
    judge = DataJudge(rows.split(25), Constant(), "", labels.split(25))
    assert judge.baseline == pytest.approx(0.92)
    assert judge.whole(Constant()).value == 0
    assert judge.whole(Constant(0, 50)).value == pytest.approx(0.92 - float((labels == 0).float().mean()))


def test_outputs_that_are_not_finite_are_no_accuracy():
    judge = DataJudge([torch.ones(4, 3)], nn.Identity(), "fidelity")
    with pytest.raises(MeasurementFailed, match="not finite"):
        judge.whole(nn.Threshold(2.0, math.nan))
    with pytest.raises(InvalidInput, match="eval_fn returned nan"):
        FunctionJudge(lambda model: math.nan, nn.Identity())


def test_a_model_against_itself_is_as_fast_as_itself(model):
    paired = time_pair(model, model, IMAGES[:4], blocks=5, at_most_s=5)
    assert 3 <= len(paired.log_ratios) <= 5  # fewer where other programs take too much of the five seconds
    assert abs(float(np.median(paired.log_ratios))) < 1.0
    assert paired.baseline_ms.min() > 0


class Sleeper(nn.Module):
    """Takes `seconds` a call, and counts calls."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds, self.calls = seconds, 0

    def forward(self, x):
        self.calls += 1
        time.sleep(self.seconds)
        return x


def test_a_call_that_is_long_is_not_made_more_often_than_it_must(monkeypatch):
    monkeypatch.setattr("model_opt.compression.evaluation.time_pair.LONG_S", 0.15)
    slow, quick = Sleeper(0.32), Sleeper(0.016)
    paired = time_pair(slow, quick, IMAGES[:4], blocks=7, at_most_s=0.1)
    assert (slow.calls, quick.calls) == (5, 9)  # three blocks of one turn each, and two or three to be warm; the quick
    # one, which the slow one has left cold, has a call that is not timed before each turn
    assert np.exp(paired.log_ratios.mean()) == pytest.approx(20, rel=0.5)


def test_drift_is_told():
    slower = Paired(baseline_ms=np.array([1.0, 1.0, 1.2, 1.2]), plan_ms=np.ones(4), busy=None)
    assert slower.drift == pytest.approx(0.2)


def test_a_stages_choice_replaces_the_whole_models(model):
    found = steps(staged(prune="0.5", prune__stage1="0", clean="fused"), model)
    assert [(s.handler.decision, s.option, s.stage) for s in found][:2] == [
        ("clean", "fused", None),
        ("prune", "0.5", "stage2"),
    ]


def test_measuring_a_plan_says_everything_and_keeps_its_model(evaluator, tmp_path, model):
    phases = []
    chosen = plan(clean="fused", prune="0.5")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measured = evaluator.measure(chosen, Purpose.EXPLORE, phases.append)
    assert list(dict.fromkeys(phases)) == ["prepare", "wait", "time", "accuracy", "save"]
    assert set(measured.samples) >= {"log_size_ratio", "log_speedup", "latency_ms", "accuracy_drop"}
    assert measured.samples["log_size_ratio"][0] > math.log(2)
    kept = load_model(kept_model(tmp_path, chosen))
    assert math.log(size_bytes(model) / size_bytes(kept)) == pytest.approx(
        measured.samples["log_size_ratio"][0], abs=0.02
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("wanted", "left_out"),
    [
        ({"min_compression_ratio": 2.0}, {"log_speedup", "latency_ms", "accuracy_drop", "accuracy_error"}),
        ({"min_speedup": 1e3}, {"accuracy_drop", "accuracy_error"}),
        ({"max_latency_ms": 1e-6}, {"accuracy_drop", "accuracy_error"}),
    ],
)
def test_what_clearly_breaks_a_limit_is_measured_no_further_once_a_plan_holds_all(evaluator, wanted, left_out):
    small, large = plan(clean="fused", prune="0.5"), plan(prune="0.25")
    every = evaluator.measure(small, Purpose.EXPLORE, lambda name: None).samples.keys()
    wants = Constraints.read({"max_accuracy_drop": 1.0, **wanted}).objective
    evaluator._task = replace(evaluator._task, objective=wants)
    evaluator.describe()
    dropped = evaluator.measure(large, Purpose.EXPLORE, lambda name: None)
    assert dropped.partial and dropped.samples.keys() == every - left_out
    assert any("judged" in note for note in dropped.notes)
    evaluator._held = False  # the least bad may be the answer
    assert evaluator.measure(large, Purpose.EXPLORE, lambda name: None).samples.keys() == every
    evaluator._held = True
    assert evaluator.measure(large, Purpose.VERIFY, lambda name: None).samples.keys() == every


def test_only_the_fastest_models_are_kept(evaluator, tmp_path):
    for ratio in ("0.25", "0.5", "0.7"):
        for clean in ("none", "fused"):
            choices = {"prune": ratio} | ({"clean": clean} if clean == "fused" else {})
            evaluator.measure(plan(**choices), Purpose.EXPLORE, lambda name: None)
    assert len(list(tmp_path.glob("*.pt"))) == 4


def test_a_plan_that_cannot_be_applied_is_illegal(evaluator):
    with pytest.raises(TechniqueError):
        evaluator.measure(plan(token_merging="8"), Purpose.EXPLORE, lambda name: None)


def test_the_description_has_context_baseline_and_noise(evaluator):
    said = evaluator.describe()
    assert said.baseline["size_bytes"] == size_bytes(evaluator._task.model)
    assert said.baseline["latency_ms"] > 0 and said.noise["log_speedup"] > 0
    assert said.context.batch == 4 and said.context.input_shapes == ((4, 1, 28, 28),)


def test_what_another_process_has_found_the_original_to_be_is_not_timed_again(evaluator):
    said = evaluator.describe()
    other = CompressionEvaluator(replace(evaluator._task, described=said))
    assert other.describe() == said


def space(model, **given):
    return build_space(model, sign_model(model), inspect("cpu"), **given)


def test_the_space_leaves_out_what_is_excluded_and_fixes_what_is_frozen(model):
    plain = space(model)
    assert [d.name for d in plain.decisions][:2] == ["clean", "prune"]
    assert "int8_static" in plain.decision("precision").options
    without = space(model, exclude=["int8", "prune"])
    assert not {o for d in without.decisions for o in d.options if o.startswith("int8")}
    assert not [d for d in without.decisions if d.name.startswith("prune")]
    frozen = space(model, freeze={"precision": "int8_static"})
    assert frozen.frozen == (Choice(decision="precision", option="int8_static"),)
    assert space(model, trains=True).decision("distil").options[-1] == "finetune"


def test_frozen_choices_that_do_not_go_together_are_refused(model):
    pytest.importorskip("onnxruntime")
    with pytest.raises(InvalidInput):
        space(model, freeze={"precision": "int8_dynamic", "runtime": "onnxruntime"})
    with pytest.raises(UnknownName, match="precision"):
        space(model, freeze={"colour": "blue"})


def test_techniques_are_listed_in_the_order_of_application():
    chosen = staged(runtime="openvino", precision="int8_static", prune="0.5", prune__stage1="0", clean="fused")
    assert techniques_of(chosen) == (
        Technique.LAYER_FUSION,
        Technique.STRUCTURED_PRUNING,
        Technique.INT8,
        Technique.OPENVINO,
    )


def test_every_choice_for_stages_can_be_said_and_few_in_two_ways():
    model = resnet18()
    every = space(model)
    names = [d.name for d in every.decisions if d.name.startswith("prune")]
    assert len(names) == 4
    plans = itertools.product(*(every.decision(name).options for name in names))
    allowed = [p for p in plans if every.why_not(every.plan(dict(zip(names, p, strict=True)))) is None]
    said = [tuple(whole if own == "same" else own for own in stages) for whole, *stages in allowed]
    assert set(said) == set(itertools.product(every.decision("prune").options, repeat=3))
    assert len(said) < 2 * len(set(said))
    alone = space(model, freeze={"prune": "0.5"})
    assert alone.why_not(alone.plan({f"prune/stage{i}": "0" for i in (1, 2, 3)})) is None
