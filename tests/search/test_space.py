"""Plans, keys and spaces: the values that everything else is built on."""

import hashlib

import numpy as np
import pytest

from model_opt.errors import InvalidInput, UnknownName
from model_opt.search.context import Context
from model_opt.search.model_signature import Family, ModelSignature, Stage
from model_opt.search.plan import Choice, Plan
from model_opt.search.space import Decision, Forbid, SearchSpace

SPACE = SearchSpace(
    [
        Decision("clean", ["none", "fused"]),
        Decision("prune", ["0", "0.5", "0.7"], True, version=2),
        Decision("runtime", ["torch", "openvino"]),
    ],
    [Forbid({"prune": ["0.7"], "runtime": ["openvino"]}, "too narrow for it")],
)


def test_a_plans_key_is_the_hash_of_its_sorted_length_prefixed_choices():
    plan = Plan((Choice(decision="prune", option="0.5", version=2), Choice(decision="clean", option="fused")))
    raw = b"".join(len(p).to_bytes(4, "big") + p for p in (b"clean", b"fused", b"1", b"prune", b"0.5", b"2"))
    assert plan.key == hashlib.blake2b(raw, digest_size=16).hexdigest()


def test_the_same_plan_has_one_key_however_it_was_reached():
    there = SPACE.plan({"prune": "0.5", "clean": "fused"})
    back = SPACE.plan({"clean": "fused", "runtime": "torch", "prune": "0.5"})
    assert there == back and there.key == back.key
    longer = SearchSpace([*SPACE.decisions, Decision("distil", ["none", "100"])])
    assert longer.plan({"clean": "fused", "prune": "0.5"}).key == there.key


def test_another_version_of_a_technique_is_another_plan():
    older = SearchSpace([Decision("prune", ["0", "0.5"])])
    assert older.plan({"prune": "0.5"}).key != SPACE.plan({"prune": "0.5"}).key
    assert not SPACE.fits(older.plan({"prune": "0.5"}))


def test_every_plan_survives_encoding():
    for codes in np.ndindex(*SPACE.sizes):
        plan = SPACE.decode(np.array(codes))
        assert SPACE.encode(plan).tolist() == list(codes)
        assert SPACE.plan(SPACE.assignment(plan)) == plan


def test_rules_name_the_plans_that_break_them():
    codes = np.array(list(np.ndindex(*SPACE.sizes)))
    broken = codes[~SPACE.allowed(codes)].tolist()
    assert broken == [[0, 2, 1], [1, 2, 1]]
    assert SPACE.why_not(SPACE.decode(np.array([0, 2, 1]))) == "too narrow for it"
    assert SPACE.why_not(SPACE.plan({"prune": "0.7"})) is None


def test_frozen_choices_are_part_of_every_plan_and_of_no_decision():
    frozen = Choice(decision="precision", option="bf16")
    space = SearchSpace(SPACE.decisions, SPACE.forbidden, [frozen])
    plan = space.plan({"clean": "fused"})
    assert plan.option("precision") == "bf16" and space.fits(plan) and not space.fits(SPACE.plan({"clean": "fused"}))
    assert space.decode(space.encode(plan)) == plan
    assert "precision" not in space.assignment(plan)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: SPACE.plan({"prun": "0.5"}), UnknownName, "clean, prune, runtime"),
        (lambda: SPACE.plan({"prune": "0.6"}), UnknownName, "0, 0.5, 0.7"),
        (lambda: Decision("a", []), InvalidInput, "at least one option"),
        (lambda: Decision("a", ["x", "x"]), InvalidInput, "twice"),
        (lambda: Decision("a", [1, 2]), InvalidInput, "strings"),
        (lambda: SearchSpace([Decision("a", ["x"]), Decision("a", ["y"])]), InvalidInput, "occurs twice"),
        (lambda: SearchSpace(SPACE.decisions, [Forbid({"clean": ["none"]})]), InvalidInput, "leaving everything alone"),
        (lambda: SearchSpace(SPACE.decisions, [Forbid({"clean": ["melted"]})]), UnknownName, "fused"),
    ],
)
def test_what_makes_no_space_is_refused(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


def signature(**changed):
    fields = {
        "family": Family.CNN,
        "parameters": 11_689_512,
        "layers": 21,
        "operators": {"conv_kxk": 17, "relu": 9, "batch_norm": 20},
        "stages": (Stage(width=64, layers=5, share=0.1), Stage(width=512, layers=5, share=0.9)),
    }
    return ModelSignature(**fields | changed)


def test_a_signatures_key_depends_on_all_of_it_and_on_no_order():
    assert signature().key == signature(operators={"relu": 9, "batch_norm": 20, "conv_kxk": 17}).key
    assert len({signature().key, signature(layers=22).key, signature(family=Family.VIT).key}) == 3


def test_the_vector_is_of_unit_length_and_puts_families_apart():
    same, wider = signature().vector, signature(parameters=21_797_672, layers=37).vector
    other = signature(family=Family.VIT, operators={"attention": 12, "linear": 37, "layer_norm": 25}).vector
    assert same.shape == (32,) and np.linalg.norm(same) == pytest.approx(1, abs=1e-6)
    assert same @ wider > 0.95 > 0.5 > same @ other


def test_what_leaves_is_coarse():
    coarse = signature().coarse()
    assert coarse.parameters != 11_689_512 and abs(coarse.parameters / 11_689_512 - 1) < 0.2
    assert set(coarse.operators.values()) <= {1, 2, 3, 4, 6, 8, 11, 16, 23, 32}
    assert coarse.coarse() == coarse


def test_contexts_that_differ_in_anything_have_other_keys():
    fields = {"device": "x", "libraries": (("torch", "2"),), "dtype": "float32", "threads": 1, "batch": 8}
    one = Context(**fields, input_shapes=((8, 3, 32, 32),))
    assert one.key == Context(**fields, input_shapes=((8, 3, 32, 32),)).key
    assert one.key != Context(**fields | {"threads": 2}, input_shapes=((8, 3, 32, 32),)).key
