"""How long plans should take before one was measured: by technique and runtime, the model's size and its latency."""

from model_opt.compression.evaluation.evaluator import BLOCKS, TIMING_S
from model_opt.compression.evaluation.time_pair import TURNS
from model_opt.compression.runtimes.declared import RUNTIMES
from model_opt.search.evaluator import Purpose
from model_opt.search.model_signature import ModelSignature
from model_opt.search.plan_seconds import ExpectedSeconds, Picked

_TURN_S = 0.008
"""What one model is called for, at the least, in each of its turns."""


_BY_OPTION: dict[tuple[tuple[str, str], ...], tuple[float, float, float]] = {
    (("clean", "fused"),): (0.3, 0.01, 10),
    (("prune", "0.25"),): (1.0, 0.05, 60),
    (("prune", "0.5"),): (1.0, 0.05, 60),
    (("prune", "0.7"),): (1.0, 0.05, 60),
    (("low_rank", "0.75"),): (1.5, 0.1, 60),
    (("low_rank", "0.5"),): (1.5, 0.1, 60),
    (("low_rank", "0.25"),): (1.5, 0.1, 60),
    (("distil", "100"),): (1.0, 0.0, 1000),
    (("distil", "400"),): (1.0, 0.0, 4000),
    (("distil", "finetune"),): (1.0, 0.0, 2000),
    (("precision", "int8_static"),): (1.5, 0.1, 40),
    (("precision", "int8_torchao"),): (1.0, 0.05, 10),
}
"""Options that a plan has, beside its runtime → seconds that it then takes longer: for itself, a million parameters,
and a call of the original (for distillation about ten a step: forwards and back, of more rows)."""
_ONCE: dict[tuple[tuple[str, str], ...], float] = {
    (("prune", "0.25"),): 1.5,
    (("prune", "0.5"),): 1.5,
    (("prune", "0.7"),): 1.5,
}
"""Seconds more that a measuring process's first plan with these options takes: libraries are imported, calibrations
compared."""
_PLAN = (0.5, 0.01, 20)
_LONGEST_STEPS_S = 150.0


def expected_seconds(signature: ModelSignature, latency_ms: float, *, kept: bool) -> ExpectedSeconds:
    """Of plans for this model, whose call takes `latency_ms` with the example; `kept`: the best models are kept, and
    not made again to be verified."""
    millions, call_s = signature.parameters / 1e6, latency_ms / 1000

    def seconds(parts: tuple[float, float, float]) -> float:
        fixed, a_million, a_call = parts
        return fixed + a_million * millions + min(a_call * call_s, _LONGEST_STEPS_S)

    added = {_picked(name, kind): parts for name, one in RUNTIMES.items() for kind, parts in one.seconds.items()}
    once_s = {_picked(name, kind): parts for name, one in RUNTIMES.items() for kind, parts in one.once_s.items()}
    timing = {purpose: _timing_s(purpose, call_s) for purpose in Purpose}
    return ExpectedSeconds(
        plan_s=seconds(_PLAN) + timing[Purpose.EXPLORE],
        verify_s=timing[Purpose.VERIFY] - timing[Purpose.EXPLORE],
        added_s={Picked(options): seconds(parts) for options, parts in {**_BY_OPTION, **added}.items()},
        once_s={Picked(options): seconds for options, seconds in {**_ONCE, **once_s}.items()},
        again=0.1 if kept else 1.0,
    )


def _picked(runtime: str, precision: str) -> tuple[tuple[str, str], ...]:
    """The options of a plan under `runtime`, in `precision` where that is named."""
    return (("runtime", runtime), *([("precision", precision)] if precision else []))


def _timing_s(purpose: Purpose, call_s: float) -> float:
    """About what both models' blocks take."""
    return min(TIMING_S[purpose], BLOCKS[purpose] * TURNS * 2 * max(call_s, _TURN_S))
