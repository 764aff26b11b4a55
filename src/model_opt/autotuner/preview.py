"""What a search would do, before it does it, and what it would have to fear."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from model_opt.autotuner.constraints import Constraints
from model_opt.autotuner.make_task import make_task
from model_opt.autotuner.sources import ModelSource
from model_opt.compression.evaluation.evaluator import BLOCKS, TIMING_S, CompressionEvaluator
from model_opt.compression.evaluation.idle_options import IDLE_S, describe_idle
from model_opt.compression.evaluation.sensitivity import Sensitivity
from model_opt.compression.evaluation.time_pair import TURNS, time_pair
from model_opt.compression.inputs import Inputs
from model_opt.compression.machine import inspect
from model_opt.compression.sign_model import sign_model
from model_opt.compression.space import build_space
from model_opt.search.evaluator import Purpose

PREPARE_CALLS = 60
"""Preparing a plan costs about as much as this many calls of the original, and `PREPARE_S` at least."""
PREPARE_S = 3.0
START_S = 10.0
_ANY = Constraints(max_accuracy_drop=1.0)


@dataclass(frozen=True, kw_only=True)
class SearchPreview:
    """The decisions with their options, what was left out as it would change nothing, the number of plans, and a rough
    cost from one timing of the original."""

    family: str
    decisions: Mapping[str, tuple[str, ...]]
    left_out: tuple[str, ...]
    plans: int
    seconds_each: float
    seconds_in_all: float


def preview(
    model: nn.Module,
    example_input: Inputs | None,
    *,
    freeze: Mapping[str, str],
    exclude: Collection[str],
    simulations: int,
) -> SearchPreview:
    """The search that these arguments would start. Raises `InvalidInput` as that would."""
    task = make_task(
        model,
        example_input=example_input,
        calibration_data=None,
        eval_fn=lambda made: 1.0,
        train_data=None,
        constraints=_ANY,
        seed=0,
    )
    signature = sign_model(task.model)
    machine = inspect(task.device)
    build_space(
        task.model, signature, machine, freeze=freeze, exclude=exclude
    )  # names are checked before anything runs
    found = CompressionEvaluator(task).idle_options(IDLE_S)
    idle = {pair: reason for pair, reason in found.items() if pair not in freeze.items()}
    space = build_space(task.model, signature, machine, freeze=freeze, exclude=exclude, idle=idle)
    timed = time_pair(task.model, task.model, task.example, blocks=3, at_most_s=2.0)
    once_s = float(timed.baseline_ms.mean()) / 1000
    timing_s = min(TIMING_S[Purpose.EXPLORE], BLOCKS[Purpose.EXPLORE] * TURNS * 2 * max(once_s, 0.008))
    each_s = max(PREPARE_S, PREPARE_CALLS * once_s) + timing_s
    return SearchPreview(
        family=str(signature.family),
        decisions={decision.name: tuple(decision.options) for decision in space.decisions},
        left_out=tuple(describe_idle(idle)),
        plans=space.total_plans,
        seconds_each=each_s,
        seconds_in_all=START_S + each_s * simulations,
    )


def sensitivities_of(source: ModelSource, *, seed: int = 0) -> list[Sensitivity]:
    """Which layers of `source` cost accuracy under which technique, most harmful first. Raises `InvalidInput`."""
    nothing = dict.fromkeys(("example_input", "calibration_data", "eval_fn", "train_data"))
    given: dict[str, Any] = {**nothing, **source.arguments}
    task = make_task(source.model, constraints=_ANY, seed=seed, **given)
    return CompressionEvaluator(task).sensitivities()
