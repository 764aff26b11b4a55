"""Runtimes after structural techniques: what they run is what torch runs, for any batch."""

import functools

import pytest
import torch
from architectures import ResidualCNN, TinyViT
from recipes import material, noisy_norms

from model_opt.compression import space  # noqa: F401  (registers every technique)
from model_opt.compression.evaluation.apply import apply_plan
from model_opt.compression.signal_to_noise import signal_to_noise_db
from model_opt.compression.technique import Material
from model_opt.search.plan import Choice, Plan


def plan(**choices: str) -> Plan:
    return Plan(tuple(Choice(decision=d, option=o) for d, o in choices.items()))


@functools.cache
def recipe(kind: str) -> Material:
    torch.manual_seed(0)
    if kind == "vit":
        images = torch.randn(64, 3, 32, 32)
        return material(TinyViT(depth=2).eval(), images[:4], list(images.split(16)))
    images = torch.randn(64, 1, 8, 8)
    return material(noisy_norms(ResidualCNN(32)), images[:4], list(images.split(16)))


STRUCTURES = [
    ("cnn", {"prune": "0.5", "low_rank": "0.5"}),
    ("vit", {"prune": "0.5"}),
    ("vit", {"low_rank": "0.5"}),
    ("vit", {"token_merging": "8"}),
]


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
@pytest.mark.parametrize(("kind", "structure"), STRUCTURES, ids=lambda v: "-".join(v) if isinstance(v, dict) else v)
def test_a_runtime_runs_what_is_left(kind: str, structure: dict[str, str], runtime: str) -> None:
    pytest.importorskip(runtime)
    chosen = recipe(kind)
    in_torch = apply_plan(plan(**structure), chosen)
    made = apply_plan(plan(**structure, runtime=runtime), chosen)
    for rows in (4, 3):
        x = chosen.fit[0][:rows]
        with torch.no_grad():
            assert signal_to_noise_db(in_torch(x), made(x)) > 60


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_int8_after_pruning_and_low_rank(runtime: str) -> None:
    pytest.importorskip(runtime)
    chosen = recipe("cnn")
    structure = {"prune": "0.5", "low_rank": "0.5"}
    in_torch = apply_plan(plan(**structure), chosen)
    made = apply_plan(plan(**structure, precision="int8_static", runtime=runtime), chosen)
    with torch.no_grad():
        assert signal_to_noise_db(in_torch(chosen.example), made(chosen.example)) > 15
