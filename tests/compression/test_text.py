import copy

import pytest
import torch
from recipes import applied, material
from torch import Tensor, nn

from model_opt.compression import space  # noqa: F401  (registers every technique)
from model_opt.compression.cost import cost
from model_opt.compression.evaluation.apply import apply_plan
from model_opt.compression.inputs import call, output
from model_opt.compression.signal_to_noise import signal_to_noise_db
from model_opt.compression.technique import Material
from model_opt.search.plan import Choice, Plan

transformers = pytest.importorskip("transformers", reason="pip install 'model_opt[text]'")


def encoder() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=200,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=32,
        num_labels=3,
    )
    return transformers.BertForSequenceClassification(config).eval()


def texts(rows: int, seed: int = 0) -> dict[str, Tensor]:
    """Token ids `[rows, 16]`, the last of every other row padded."""
    ids = torch.randint(1, 200, (rows, 16), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[::2, 12:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture(scope="module")
def recipe() -> Material:
    return material(encoder(), texts(4), [texts(16, seed) for seed in range(4)], [texts(16, 9)])


def plan(**choices: str) -> Plan:
    return Plan(tuple(Choice(decision=d, option=o) for d, o in choices.items()))


@pytest.mark.parametrize(("technique", "floor"), [({"low_rank": "0.5"}, 10), ({"prune": "0.5"}, 4)])
def test_an_encoder_gets_cheaper_and_stays_close(recipe: Material, technique: dict[str, str], floor: float) -> None:
    """Random weights have no redundancy: half of the heads and units is much to take from them."""
    made = applied(recipe, **technique)
    old, new = cost(recipe.teacher, recipe.example), cost(made, recipe.example)
    assert new.flops < 0.75 * old.flops
    other = texts(16, 77)
    assert signal_to_noise_db(output(call(recipe.teacher, other)), output(call(made, other))) > floor
    assert output(call(copy.deepcopy(made), other)).shape == (16, 3)


def test_heads_of_an_encoder_are_pruned(recipe: Material) -> None:
    made = applied(recipe, prune="0.5")
    attention = made.get_submodule("bert.encoder.layer.0.attention")
    assert attention.self.num_attention_heads == 2
    assert attention.self.query.out_features == attention.output.dense.in_features == 32
    assert made.get_submodule("bert.encoder.layer.0.intermediate.dense").out_features == 128


@pytest.mark.parametrize(
    ("choices", "floor"),
    [
        ({"precision": "int8_dynamic"}, 15),
        ({"runtime": "openvino"}, 60),
        ({"runtime": "openvino", "precision": "int8_static"}, 31),  # 28 dB where not calibrated as a transformer
        ({"runtime": "onnxruntime"}, 60),
        ({"prune": "0.25", "runtime": "openvino"}, 6),
    ],
    ids=lambda value: "+".join(value.values()) if isinstance(value, dict) else "",
)
def test_an_encoder_runs_everywhere_for_any_batch(recipe: Material, choices: dict[str, str], floor: float) -> None:
    made = apply_plan(plan(**choices), recipe)
    for rows in (4, 3):
        other = texts(rows, 5)
        with torch.no_grad():
            expected, got = call(recipe.teacher, other), call(made, other)
        assert signal_to_noise_db(output(expected), output(got)) > floor
        assert got.logits.shape == (rows, 3)
