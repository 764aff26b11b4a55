"""What was found out about one teacher, for every plan that follows."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from model_opt.compression.interface import Interface
    from model_opt.compression.runtimes.openvino import Calibration
    from model_opt.compression.techniques.refit import Targets

Steps = tuple[tuple[str, str, str | None], ...]
"""Structural steps of a plan in their order: decision, option, stage."""


@dataclass(kw_only=True)
class Findings:
    """Filled in as it is asked for; None is not looked at yet. Nothing in it is ever changed."""

    interface: "Interface | None" = None
    answers: "list[Tensor] | None" = None
    """Of the teacher, to the example."""
    clean: "tuple[nn.Module, dict[str, int]] | None" = None
    """The cleaned teacher, and how often each of its rewrites was made."""
    targets: "Targets | None" = None
    """What refits solve for."""
    distil_step_s: float | None = None
    calibration: "Calibration | None" = None
    """That of OpenVINO's int8 which comes closest."""
    idle: dict[str, Mapping[tuple[str, str], str]] = field(default_factory=dict)
    """By decision: its options that would change nothing, and why."""
    hopeless: dict[frozenset[tuple[str, str]], str] = field(default_factory=dict)
    """Options that fail together in every plan, and how."""
    structures: "OrderedDict[Steps, nn.Module]" = field(default_factory=OrderedDict)
    """Models after structural steps, the last few."""
    structure: "tuple[nn.Module, Steps] | None" = None
    """The model of the plan at work after its structural steps."""
    exported: dict[str, tuple[Steps, Any]] = field(default_factory=dict)
    """By the kind of program: the last structure that was exported, and what came of it."""
