"""The register of techniques: each is a decision of the search, with its options, its legality and its handler.

A technique changes a *copy* of the user's model. Handlers are applied in the order of `ORDER`, whatever the order in
which a plan names them: other orders fail, or silently do nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from model_opt.compression.findings import Findings
from model_opt.compression.machine import Machine as Machine
from model_opt.errors import UnknownName
from model_opt.search.evaluator import Phase
from model_opt.search.model_signature import ModelSignature
from model_opt.search.plan import Plan

if TYPE_CHECKING:  # a result names techniques, and is read without torch
    from torch import nn

    from model_opt.compression.inputs import Inputs


class Technique(StrEnum):
    """What a result lists under `techniques`."""

    LAYER_FUSION = "layer_fusion"
    STRUCTURED_PRUNING = "structured_pruning"
    LOW_RANK = "low_rank"
    DISTILLATION = "distillation"
    FINE_TUNING = "fine_tuning"
    TOKEN_MERGING = "token_merging"
    BF16 = "bf16"
    INT8 = "int8"
    INT4 = "int4"
    FP8 = "fp8"
    CHANNELS_LAST = "channels_last"
    PACKED_LINEAR = "packed_linear"
    TORCH_COMPILE = "torch_compile"
    AOT_INDUCTOR = "aot_inductor"
    OPENVINO = "openvino"
    ONNX_RUNTIME = "onnxruntime"
    TENSORRT = "tensorrt"
    CUSTOM = "custom"
    """A user's own."""


@dataclass(kw_only=True)
class Material:
    """What handlers may use while they apply one plan. Made once per model; `findings` outlive the plan.

    `example` is one input at the batch that is timed. `fit` are calibration batches that handlers may fit on;
    `held_out` are batches that nothing is ever fitted on, for handlers that keep a change only if it helps. `sizes` has
    a batch of each size of rows, where there are several. `teacher` is the `original`, the user's model in eval mode,
    unchanged but that it computes in float32; `findings` are what was found out about it. `train_data` yields (inputs,
    target) pairs, or is None. With `fallback` what is compiled keeps the original for the inputs that it refuses.
    """

    teacher: "nn.Module"
    example: "Inputs"
    fit: "Sequence[Inputs]"
    held_out: "Sequence[Inputs]"
    signature: ModelSignature
    machine: Machine
    threads: int
    seed: int
    phase: Phase
    original: "nn.Module | None" = None
    """None where that is the teacher."""
    sizes: "Sequence[Inputs]" = ()
    train_data: Any = None
    fallback: bool = False
    findings: Findings = field(default_factory=Findings)


Apply = Callable[["nn.Module", str, str | None, Plan, Material], "nn.Module"]
"""`(model, option, stage, plan, material) -> model`: may change `model`, which is a copy, or return another. `stage`
is what follows the slash of the decision's name ("prune/stage2"), None where the whole model is meant. `plan` is the
whole plan, for handlers that depend on another decision (the runtime on the precision). Raises `TechniqueError`."""

Options = Callable[["nn.Module", ModelSignature, Machine], Sequence[str]]
"""The options worth offering for this model on this machine, without "leave alone"; empty where there are none."""


@dataclass(frozen=True, kw_only=True)
class Handler:
    """One technique. `leave_alone` is the name of its first option; `technique` says what an option counts as."""

    decision: str
    leave_alone: str
    technique: Callable[[str], Technique]
    options: Options
    apply: Apply
    ordered: bool = False
    version: int = 1
    check: Callable[[str, Material], None] | None = None
    """`(option, material)`: raises `TechniqueError` where it can be told at once that an option cannot be applied."""
    idle: Callable[[Material], Mapping[tuple[str, str], str]] | None = None
    """Which (decision, option) pairs would change nothing in this model, each with the reason in words; quick."""
    after_last: "Callable[[nn.Module, Material], object] | None" = None
    """`(model, material)`: called once in a plan, after the technique was applied to the last of its stages."""
    per_stage: bool = False
    """Whether the decision may be made per stage ("prune/stage2") as well as for the whole model."""


ORDER = ["clean", "prune", "low_rank", "distil", "token_merging", "precision", "runtime"]
"""The decisions in the order of application; `register` adds a user's own."""

HANDLERS: dict[str, Handler] = {}
OWN: dict[str, tuple[Handler, str]] = {}
"""Users' handlers by decision, each with the decision that it comes before."""


def register(handler: Handler, *, before: str | None = None) -> Handler:
    """Makes `handler` known; it is taken along to measuring processes.

    Parameters
    ----------
    handler
        What a decision does to a model.
    before
        The decision that a technique of your own is applied before; "precision" is right for what changes the model's
        structure or weights.

    Returns
    -------
    Handler
        The same.

    Raises
    ------
    UnknownName
        For a decision that `ORDER` does not place, or one named twice.
    """
    if before is not None and handler.decision not in ORDER:
        if before not in ORDER:
            raise UnknownName("decision to come before:", before, ORDER)
        ORDER.insert(ORDER.index(before), handler.decision)
        OWN[handler.decision] = (handler, before)
    if handler.decision not in ORDER:
        raise UnknownName("decision", handler.decision, ORDER)
    if handler.decision in HANDLERS:
        raise UnknownName("second handler of decision", handler.decision, set(ORDER) - set(HANDLERS))
    HANDLERS[handler.decision] = handler
    return handler


def handler_of(decision: str) -> tuple[Handler, str | None]:
    """The handler of a decision's name and its stage ("prune/stage2" → prune's, "stage2"); raises `UnknownName`."""
    name, _, stage = decision.partition("/")
    if name not in HANDLERS:
        raise UnknownName("decision", decision, HANDLERS)
    return HANDLERS[name], stage or None


def techniques_of(plan: Plan) -> tuple[Technique, ...]:
    """What `plan` does, in order of application, each technique once."""
    found = []
    for choice in sorted(plan.choices, key=lambda c: ORDER.index(c.decision.partition("/")[0])):
        handler, _ = handler_of(choice.decision)
        if choice.option != handler.leave_alone:
            found.append(handler.technique(choice.option))
    return tuple(dict.fromkeys(found))
