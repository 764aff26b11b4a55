import dataclasses

import pytest
import torch
from recipes import accuracy, applied, digits, state, trained, unchanged

from model_opt.compression.evaluation.apply import apply_plan
from model_opt.compression.machine import inspect
from model_opt.compression.space import build_space
from model_opt.compression.techniques.distil import FINETUNE, divergence
from model_opt.errors import TechniqueDidNothing, TechniqueError
from model_opt.search.plan import Choice, Plan


def test_distillation_helps_a_pruned_network() -> None:
    recipe = trained()
    before = state(recipe.teacher)
    pruned, distilled = applied(recipe, prune="0.7"), applied(recipe, prune="0.7", distil="100")
    with torch.no_grad():
        held = torch.cat(list(recipe.held_out))
        wanted = recipe.teacher(held)
        assert divergence(distilled(held), wanted) < divergence(pruned(held), wanted)
    assert accuracy(distilled) > accuracy(pruned) - 0.01
    assert unchanged(recipe.teacher, before)
    assert all(p.grad is None and p.is_contiguous() for p in distilled.parameters())


def test_is_not_kept_where_nothing_can_be_gained() -> None:
    with pytest.raises(TechniqueDidNothing, match="as the original does"):
        applied(trained(), distil="100")  # the student is the teacher


def test_no_space_has_a_plan_that_distils_what_is_still_the_original() -> None:
    recipe = trained()
    space = build_space(recipe.teacher, recipe.signature, inspect())
    stage = next(d.name for d in space.decisions if d.name.startswith("prune/"))
    plain = {"distil": "100", "clean": "fused", "precision": "bf16"}
    assert "nothing to recover" in (space.why_not(space.plan(plain)) or "")
    for helped in ({"prune": "0.5"}, {stage: "0.25"}, {"low_rank": "0.5"}):
        assert space.why_not(space.plan(plain | helped)) is None
    frozen = build_space(recipe.teacher, recipe.signature, inspect(), freeze={"prune": "0.5"})
    assert frozen.why_not(frozen.plan(plain)) is None
    build_space(recipe.teacher, recipe.signature, inspect(), freeze={"distil": "100"})  # the user's own wish


def test_what_would_take_too_long_is_refused_before_anything_is_pruned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model_opt.compression.techniques.distil.LONGEST_S", 0.0)
    recipe = trained()
    with pytest.raises(TechniqueError, match=r"100 gradient steps, of .* s for the original, take too long"):
        apply_plan(Plan((Choice(decision="prune", option="0.7"), Choice(decision="distil", option="100"))), recipe)
    assert not recipe.findings.structures


def test_what_takes_longer_than_was_foreseen_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model_opt.compression.techniques.distil.LONGEST_S", 0.0)
    with pytest.raises(TechniqueError, match=r"100 gradient steps of .* s take longer"):
        applied(trained(), prune="0.7", distil="100")


def test_fine_tuning_with_labels() -> None:
    images, labels = digits()
    pairs = list(zip(images[:1200].split(60), labels[:1200].split(60), strict=True))
    recipe = dataclasses.replace(trained(), train_data=pairs)
    assert accuracy(applied(recipe, prune="0.7", distil=FINETUNE)) > accuracy(applied(recipe, prune="0.7"))


def test_fine_tuning_needs_data() -> None:
    with pytest.raises(TechniqueError, match="train_data"):
        applied(trained(), distil=FINETUNE)


def test_divergence_of_other_outputs_is_relative() -> None:
    made = torch.randn(4, 3, 8, 8)
    assert float(divergence(made * 1.1, made)) == pytest.approx(0.01, rel=1e-3)
    assert float(divergence(torch.zeros(3, 5), torch.zeros(3, 5))) == 0.0
