"""What each family usually gains from: strategies to measure first, and weights for the search's first moves."""

import math
from collections.abc import Mapping, Sequence

from model_opt.compression.machine import Machine
from model_opt.compression.runtimes.declared import RUNTIMES
from model_opt.search.model_signature import Family
from model_opt.search.plan import Plan
from model_opt.search.plan_seconds import ExpectedSeconds
from model_opt.search.space import Decision, SearchSpace

MILD, STRONG, MOST = "mild", "strong", "most"
"""Stand for the first option of an ordered decision that does something, for the one after it, and for the last."""

Template = Mapping[str, Sequence[str]]
"""Decision → the options wanted, best first; the first that is there is taken, none leaves the decision alone."""

INT8 = ("int8_static", "int8_torchao", "int8_dynamic")
FAST = tuple(name for name, runtime in RUNTIMES.items() if runtime.quantises_itself)
"""Runtimes that quantise by themselves, those that are quick to prepare and gain most first."""

_ELSEWHERE: Sequence[Template] = [{"clean": ["fused"], "precision": INT8, "runtime": [name]} for name in FAST[1:]]
"""int8 in each further runtime: which is the fastest, and which the closest, differs by processor and by network."""
_CNN: Sequence[Template] = (
    {"clean": ["fused"], "precision": INT8, "runtime": FAST},
    {"clean": ["fused"], "prune": [MILD], "precision": INT8, "runtime": FAST},
    {"clean": ["fused"], "precision": ["bf16"], "runtime": FAST},
    *_ELSEWHERE,
    {"clean": ["fused"], "precision": INT8},
    {"clean": ["fused"], "prune": [STRONG], "precision": INT8, "runtime": FAST},
    {"clean": ["fused"], "prune": [MOST], "precision": INT8, "runtime": FAST},
    {"clean": ["fused"], "runtime": FAST[1:]},
    {"clean": ["fused"], "precision": ["bf16"], "runtime": ["aot_inductor"]},
)
_VIT: Sequence[Template] = (
    {"clean": ["fused"], "precision": INT8, "runtime": FAST},
    {"clean": ["fused"], "token_merging": [MILD], "precision": INT8, "runtime": FAST},
    {"clean": ["fused"], "precision": ["bf16"], "runtime": FAST},
    *_ELSEWHERE,
    {"clean": ["fused"], "precision": ["int8_dynamic", "int8_torchao"]},
    {"clean": ["fused"], "low_rank": [STRONG], "precision": INT8, "runtime": FAST},
    {"clean": ["fused"], "prune": [MILD], "precision": INT8, "runtime": FAST},
    {"clean": ["fused"], "prune": [MOST], "token_merging": [MOST], "precision": INT8, "runtime": FAST},
)
_DIFFUSION: Sequence[Template] = (
    {"clean": ["fused"], "token_merging": [MILD], "precision": ["bf16"], "runtime": FAST},
    {"clean": ["fused"], "precision": ["bf16"], "runtime": FAST},
    {"clean": ["fused"], "precision": INT8, "runtime": FAST},
    {"clean": ["fused"], "precision": ["int8_dynamic"]},
    {"clean": ["fused"], "runtime": FAST},
)

STRATEGIES: Mapping[Family, Sequence[Template]] = {
    Family.CNN: _CNN,
    Family.VIT: _VIT,
    Family.HYBRID: (*_CNN[:3], *_ELSEWHERE, *_VIT[1:2], *_CNN[3:]),
    Family.DIFFUSION: _DIFFUSION,
    Family.OTHER: _VIT,
}

WEIGHTS: Mapping[tuple[str, str], float] = {
    ("clean", "fused"): 4.0,
    ("precision", "int8_static"): 4.0,
    ("precision", "bf16"): 2.0,
    ("precision", "int8_dynamic"): 2.0,
    ("prune", "0"): 3.0,
    ("prune", "0.7"): 0.5,
    ("low_rank", "0"): 6.0,
    ("distil", "none"): 4.0,
    ("token_merging", "0"): 3.0,
}
"""Prior weights of options, beside those of runtimes; what is not named weighs 1. What costs accuracy weighs less."""

WITHOUT_INT8_DOT: Mapping[tuple[str, str], float] = {
    ("precision", "int8_static"): 3.0,
    ("precision", "int8_dynamic"): 1.5,
}
"""Weights where the hardware does not add int8 products up in 32 bits: int8 gains less time, as many bytes."""
WITHOUT_BF16: Mapping[tuple[str, str], float] = {("precision", "bf16"): 0.5}
"""Weights where bf16 is emulated: half the bytes; as fast as float32 in OpenVINO, many times slower in torch."""
TOLERABLE_DB = 15.0
"""The signal-to-noise ratio of the outputs at which an option's weight is halved."""
STAGE_WEIGHT = 12.0
"""Leaving a stage to the whole model's option; its own options weigh 1 each."""


def strategies(family: Family, space: SearchSpace) -> list[Plan]:
    """The family's strategies as plans of `space`, most promising first; those not allowed there are left out."""
    plans = [_fill(template, space) for template in STRATEGIES[family]]
    return [plan for plan in dict.fromkeys(plans) if space.why_not(plan) is None and plan != space.plan({})]


def prior(
    space: SearchSpace,
    noise_db: Mapping[tuple[str, str], float] | None = None,
    machine: Machine | None = None,
    expected: ExpectedSeconds | None = None,
    plan_s: float = math.inf,
) -> dict[tuple[str, str], float]:
    """The weight of every (decision, option) of `space`; leaving a stage to the whole model weighs most.

    `noise_db` is the signal-to-noise ratio to expect of options: those that drown the outputs weigh less. So does what
    the hardware of `machine` does not do by itself, and what should take longer, as `expected`, than the `plan_s`
    seconds that a search has for each of its plans: half as much where it takes just that.
    """
    runtimes = {("runtime", name): runtime.weight for name, runtime in RUNTIMES.items()}
    known = {**WEIGHTS, **runtimes, **_slower(machine)}
    groups = expected.added_s.items() if expected else ()
    longer = {pair: seconds for group, seconds in groups for pair in group if len(group) == 1}
    weights = {}
    for decision in space.decisions:
        for position, option in enumerate(decision.options):
            staged = "/" in decision.name and position == 0
            usual = STAGE_WEIGHT if staged else known.get((decision.name, option), 1.0)
            close_db = (noise_db or {}).get((decision.name, option), math.inf)
            slow = 1 + longer.get((decision.name.partition("/")[0], option), 0.0) / plan_s
            weights[decision.name, option] = usual / slow / (1 + 10 ** ((TOLERABLE_DB - close_db) / 10))
    return weights


def _slower(machine: Machine | None) -> dict[tuple[str, str], float]:
    if machine is None:
        return {}
    return {**({} if machine.int8_dot else WITHOUT_INT8_DOT), **({} if machine.bf16 else WITHOUT_BF16)}


def _fill(template: Template, space: SearchSpace) -> Plan:
    chosen: dict[str, str] = {}
    for decision in space.decisions:
        options = [_option(decision, wanted) for wanted in template.get(decision.name, ())]
        for option in filter(None, options):
            if space.why_not(space.plan(chosen | {decision.name: option})) is None:
                chosen[decision.name] = option
                break
    return space.plan(chosen)


def _option(decision: Decision, wanted: str) -> str | None:
    if wanted in decision.options:
        return wanted
    place = {MILD: 1, STRONG: 2, MOST: len(decision.options) - 1}.get(wanted, 0)
    return decision.options[place] if 0 < place < len(decision.options) else None
