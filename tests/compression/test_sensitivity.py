import math

import pytest
import torch
from architectures import ResidualCNN
from recipes import accuracy, hooks_left, material, state, trained, unchanged

from model_opt.autotuner.strategies import prior
from model_opt.compression.evaluation.sensitivity import Sensitivity, combined_db, option_noise_db, sensitivities
from model_opt.compression.machine import inspect
from model_opt.compression.space import build_space


def test_every_layer_and_stage_is_judged_and_nothing_is_changed() -> None:
    recipe = trained()
    before = state(recipe.teacher)
    found = sensitivities(recipe)
    assert unchanged(recipe.teacher, before) and not hooks_left(recipe.teacher)
    assert accuracy(recipe.teacher) > 0.95
    by = {t: {s.where: s for s in found if s.technique == t} for t in ("int8", "low_rank", "prune")}
    assert {"stem.0", "layer3.conv2", "head"} <= set(by["int8"])
    assert "layer3.conv2" in by["low_rank"] and set(by["prune"]) <= {"stage1", "stage2", "stage3", "stage4"}
    assert by["prune"]
    assert [s.sqnr_db for s in found] == sorted(s.sqnr_db for s in found)
    assert all(0 <= s.changed <= 1 and s.parameters > 0 for s in found)


def test_a_layer_with_an_outlier_is_named_first() -> None:
    model = ResidualCNN(16).eval()
    with torch.no_grad():
        model.layer3.conv1.weight[:, 0] *= 300  # the other weights of each output round to zero
    x = torch.randn(32, 1, 8, 8)
    found = [s for s in sensitivities(material(model, x[:2], [x])) if s.technique == "int8"]
    assert found[0].where == "layer3.conv1"
    others = [s for s in found if s.where.startswith("layer") and s is not found[0]]
    assert all(found[0].sqnr_db < other.sqnr_db - 3 for other in others)


def test_noise_adds_up_in_power() -> None:
    def one(where: str, db: float) -> Sensitivity:
        return Sensitivity(technique="int8", where=where, parameters=1, sqnr_db=db, changed=0.0)

    found = [one("a", 20.0), one("b", 20.0), one("c", math.inf)]
    assert combined_db(found, "int8") == pytest.approx(20 - 10 * math.log10(2))
    assert combined_db(found, "prune") == math.inf


def test_harmful_options_weigh_less_in_the_prior() -> None:
    recipe = trained()
    space = build_space(recipe.teacher, recipe.signature, inspect())
    expected = option_noise_db(recipe, math.inf)
    assert expected["prune", "0.25"] > expected["prune", "0.7"]
    usual, informed = prior(space), prior(space, expected)
    ratio = {key: informed[key] / usual[key] for key in usual}
    assert ratio["prune", "0"] == 1 and ratio["prune", "0.7"] < ratio["prune", "0.25"] < 1
