"""What cannot be done to a model is found out once: while its space is built, or by the first plan that tries."""

import time

import pytest
import torch
from recipes import material
from torch import Tensor, nn

from model_opt.compression.evaluation.apply import apply_plan
from model_opt.compression.evaluation.evaluator import CompressionEvaluator, Task
from model_opt.compression.evaluation.idle_options import idle_options
from model_opt.compression.inputs import call
from model_opt.compression.machine import inspect
from model_opt.compression.sign_model import sign_model
from model_opt.compression.space import build_space
from model_opt.errors import TechniqueDidNothing, TechniqueError
from model_opt.measuring.child import MeasuringChild
from model_opt.search import Objective
from model_opt.search.evaluator import Failure, Purpose, Reason
from model_opt.search.searcher import Searcher


class NormAfter(nn.Module):
    """Norms come after activations, so that none can be folded away; two of its stages are too narrow to prune."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(*(self._block(narrow, 2) for narrow in (3, 2, 2, 2)))
        self.second = nn.Sequential(self._block(2, 1), *(self._block(1, 1) for _ in range(3)))
        self.third = nn.Sequential(self._block(1, 32), *(self._block(32, 32) for _ in range(3)))
        self.head = nn.Linear(32, 10)

    @staticmethod
    def _block(narrow: int, wide: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(narrow, wide, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(wide))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.third(self.second(self.first(x))).mean((2, 3)))


class Branching(nn.Module):
    """Takes another way where its input says so: no exporter can follow it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU())
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x).mean((2, 3))
        return self.head(y if bool(y.sum() > 0) else -y)


def made(model: nn.Module):
    torch.manual_seed(0)
    rows = torch.rand(16, 3, 12, 12)
    return material(model.eval(), rows[:4], [rows[:8]], [rows[8:]])


def test_what_would_change_nothing_is_not_in_the_space():
    recipe = made(NormAfter())
    every = build_space(recipe.teacher, recipe.signature, inspect())
    assert every.decision("clean").options == ("none", "fused")
    idle = idle_options(recipe, 60.0)
    assert idle["clean", "fused"].startswith("nothing to rewrite")
    space = build_space(recipe.teacher, recipe.signature, inspect(), idle=idle)
    assert "clean" not in [decision.name for decision in space.decisions]
    for where, options in {d.name: d.options for d in every.decisions if d.name.startswith("prune")}.items():
        for ratio in [option for option in options if option not in ("0", "same")]:
            plan = every.plan({where: ratio})
            if (where, ratio) in idle:
                with pytest.raises(TechniqueDidNothing):
                    apply_plan(plan, made(NormAfter()))
            else:
                assert space.fits(plan)
                assert (where, ratio) != ("prune", "0.5") or apply_plan(plan, recipe)
    assert {where for where, _ in idle if where.startswith("prune")}  # some of each, or the test says nothing
    assert "prune" in [decision.name for decision in space.decisions]


def test_a_stage_that_cannot_be_pruned_does_not_lose_a_plan_that_prunes_the_rest_unevenly():
    recipe = made(NormAfter())
    idle = idle_options(recipe, 60.0)
    stages = sorted({where for where, _ in idle if "/" in where})
    other = next(f"prune/stage{n}" for n in (1, 2, 3, 4) if f"prune/stage{n}" not in stages)
    every = build_space(recipe.teacher, recipe.signature, inspect())
    uneven = every.plan({"prune": "0.5", other: "0.25"})
    assert stages and call(apply_plan(uneven, recipe), recipe.example).shape == (4, 10)


def test_what_failed_for_certain_fails_at_once_in_the_plans_that_follow():
    pytest.importorskip("openvino")
    recipe = made(Branching())
    space = build_space(recipe.teacher, recipe.signature, inspect())
    with pytest.raises(TechniqueError, match=r"torch\.export cannot follow") as failed:
        apply_plan(space.plan({"clean": "fused", "runtime": "openvino"}), recipe)
    assert failed.value.blamed == {("runtime", "openvino")}
    for choices in ({"prune": "0.5", "runtime": "openvino"}, {"low_rank": "0.5", "runtime": "openvino"}):
        began = time.process_time()
        with pytest.raises(TechniqueError, match=r"torch\.export cannot follow"):
            apply_plan(space.plan(choices), recipe)
        assert time.process_time() - began < 0.5
    apply_plan(space.plan({"clean": "fused", "prune": "0.5"}), recipe)


def test_a_step_that_changes_nothing_is_to_blame_with_what_came_before_it_and_not_with_what_follows():
    recipe = made(NormAfter())
    space = build_space(recipe.teacher, recipe.signature, inspect())
    where, ratio = next(pair for pair in idle_options(recipe, 60.0) if "/" in pair[0])
    with pytest.raises(TechniqueDidNothing) as failed:
        apply_plan(space.plan({where: ratio, "low_rank": "0.5"}), recipe)
    blamed = dict(failed.value.blamed)
    assert blamed[where] == ratio and blamed["prune"] == "0"
    assert not {"clean", "low_rank", "precision", "runtime"} & blamed.keys()


def test_a_search_proposes_nothing_more_of_what_is_to_blame():
    pytest.importorskip("openvino")
    rows = torch.rand(16, 3, 12, 12)
    model = Branching().eval()
    task = Task(model=model, example=rows[:4], fit=[rows[:8]], held_out=[rows[8:]])
    space = build_space(model, sign_model(model), inspect())
    searcher = Searcher(space, Objective(metric="log_speedup", maximize=True), budget=40)
    with MeasuringChild(lambda: CompressionEvaluator(task)) as child:
        outcome = child.measure(space.plan({"runtime": "openvino", "clean": "fused"}), Purpose.EXPLORE)
    assert isinstance(outcome, Failure) and outcome.reason is Reason.ILLEGAL
    assert outcome.blamed == {("runtime", "openvino")}
    searcher.tell(outcome)
    for proposal in searcher.ask_many(30):
        assert proposal.plan.option("runtime") != "openvino"
