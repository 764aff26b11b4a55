"""What benchmarks make plans' models of."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from model_opt.compression.inputs import Inputs
from model_opt.compression.machine import inspect
from model_opt.compression.sign_model import sign_model
from model_opt.compression.space import build_space
from model_opt.compression.technique import Material
from model_opt.search.plan import Plan


def material_of(model: nn.Module, example: Inputs, fit: Sequence[Inputs], held_out: Sequence[Inputs]) -> Material:
    """Material for plans of `model`, with torch's threads."""
    return Material(
        teacher=model,
        example=example,
        fit=fit,
        held_out=held_out,
        signature=sign_model(model),
        machine=inspect(),
        threads=torch.get_num_threads(),
        seed=0,
        phase=lambda name: None,
    )


def plan_of(material: Material, choices: Mapping[str, str]) -> Plan:
    """The plan with those of `choices` that there are for this model."""
    space = build_space(material.teacher, material.signature, material.machine)
    known = {decision.name: decision.options for decision in space.decisions}
    return space.plan({name: option for name, option in choices.items() if option in known.get(name, ())})
