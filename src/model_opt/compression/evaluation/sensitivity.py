"""Which layers cost accuracy under which technique: each is disturbed alone, and the model's outputs are compared.

int8 rounds one layer's weights (per channel) and inputs (per tensor); low rank leaves half of one layer's cost; pruning
takes half of one stage's channels, refitted as it always is. All are judged on rows that nothing was fitted on. The
noise of techniques adds up about in power, −10·log10 Σ 10^(−SQNR/10), so that what is measured layer by layer says
what a plan will cost before it is made.
"""

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model_opt.compression.inputs import Inputs, call, output
from model_opt.compression.samples import Solvable, few, hooked, snr_db, solvable_layers, stage_filter
from model_opt.compression.stages import stages
from model_opt.compression.technique import Material
from model_opt.compression.techniques import low_rank, prune
from model_opt.compression.techniques.clean import reference
from model_opt.compression.techniques.refit import refit

ROWS = 32
SHARE = 0.5
"""Of a layer's cost, what low rank leaves; of a stage's channels, what pruning takes."""


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What one technique does to the outputs when it is used on one layer, or one stage, alone.

    `changed` is the share of rows whose first class is another; for models that are no classifiers, the relative error.
    `parameters` is how many weights lie there.
    """

    technique: str
    where: str
    parameters: int
    sqnr_db: float
    changed: float


def sensitivities(material: Material, most_s: float = math.inf) -> list[Sensitivity]:
    """Every layer under int8 and low rank, every stage under pruning, most harmful first; what `most_s` seconds allow.

    The teacher is not changed.
    """
    end = time.monotonic() + most_s
    model = copy.deepcopy(reference(material))
    probe = _Probe(model, material.held_out[0])
    found = []
    for sensitivity in itertools.chain(_int8(probe), _low_rank(probe, material), _pruning(probe, material)):
        found.append(sensitivity)
        if time.monotonic() > end:
            break
    return sorted(found, key=lambda each: each.sqnr_db)


class _Probe:
    """Compares what `model`, disturbed somewhere, makes of some rows with what it made of them before."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        self.model = model
        self.inputs = few(inputs, ROWS)
        self.expected = self._outputs(model)

    def compare(self, technique: str, where: str, parameters: int, model: nn.Module | None = None) -> Sensitivity:
        made = self._outputs(model or self.model)
        classifier = made.dim() == 2 and made.shape[1] > 1
        if classifier:
            changed = float((made.argmax(1) != self.expected.argmax(1)).float().mean())
        else:
            changed = float((made - self.expected).norm() / self.expected.norm().clamp_min(1e-12))
        return Sensitivity(
            technique=technique,
            where=where,
            parameters=parameters,
            sqnr_db=snr_db(self.expected, made),
            changed=changed,
        )

    def _outputs(self, model: nn.Module) -> Tensor:
        with torch.no_grad():
            return output(call(model, self.inputs)).float().clone()


def _int8(probe: _Probe) -> Iterator[Sensitivity]:
    for name, layer in solvable_layers(probe.model):
        with rounded(layer):
            found = probe.compare("int8", name, layer.weight.numel())
        yield found


@contextmanager
def rounded(layer: Solvable) -> Iterator[None]:
    """Inside, `layer` computes as int8 would: weights rounded per output channel, inputs per tensor."""
    weight = layer.weight.data
    scale = weight.flatten(1).abs().amax(1).clamp_min(1e-12).view(-1, *[1] * (weight.dim() - 1)) / 127
    layer.weight.data = (weight / scale).round().clamp(-127, 127) * scale

    def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (_rounded_input(args[0]), *args[1:])

    try:
        with hooked([layer.register_forward_pre_hook(before)]):
            yield
    finally:
        layer.weight.data = weight


def _rounded_input(x: Tensor) -> Tensor:
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = max(high - low, 1e-12) / 255
    return torch.fake_quantize_per_tensor_affine(x, scale, round(-low / scale), 0, 255)


def _low_rank(probe: _Probe, material: Material) -> Iterator[Sensitivity]:
    """Half of the cost of each layer that may be factorised; nothing for those that have no use for fewer ranks."""
    for layer in low_rank.analyse(probe.model, material, lambda name: True):
        if low_rank.replace(probe.model, [layer], SHARE):
            found = probe.compare("low_rank", layer.name, layer.layer.weight.numel())
            probe.model.set_submodule(layer.name, layer.layer)
            yield found


def _pruning(probe: _Probe, material: Material) -> Iterator[Sensitivity]:
    wanted: list[str | None] = list(stages(material.teacher)) or [None]
    for stage in wanted:
        made = copy.deepcopy(probe.model)
        inside = stage_filter(material.teacher, stage)
        try:
            prune.prune(made, SHARE, few(material.example, 2), inside)
            refit(made, material)
            parameters = sum(m.weight.numel() for n, m in solvable_layers(probe.model) if inside(n))
            found = probe.compare("prune", stage or "the whole model", parameters, made)
        except prune.BROKEN:
            continue
        yield found


def combined_db(found: list[Sensitivity], technique: str, only: Callable[[str], bool] = lambda name: True) -> float:
    """The signal-to-noise ratio to expect where `technique` is used everywhere that `only` allows; inf for nowhere."""
    noise = sum(10 ** (-s.sqnr_db / 10) for s in found if s.technique == technique and only(s.where))
    return -10 * math.log10(noise) if noise else math.inf


def option_noise_db(material: Material, most_s: float) -> Mapping[tuple[str, str], float]:
    """(decision, option) → the signal-to-noise ratio to expect of it: the prior of a search.

    Half a layer's cost is what was measured; a quarter and three quarters are taken to be 6 dB worse and better.
    """
    found = sensitivities(material, most_s)
    expected: dict[tuple[str, str], float] = {("precision", "int8_static"): combined_db(found, "int8")}
    for decision, options in (("low_rank", ("0.75", "0.5", "0.25")), ("prune", ("0.25", "0.5", "0.7"))):
        whole = combined_db(found, decision)
        expected |= {(decision, option): whole + shift for option, shift in zip(options, (6.0, 0.0, -6.0), strict=True)}
    for stage in stages(material.teacher):
        alone = combined_db(found, "prune", stage.__eq__)
        shifts = {"0.25": 6.0, "0.5": 0.0, "0.7": -6.0}
        expected |= {(f"prune/{stage}", option): alone + shift for option, shift in shifts.items()}
    return {key: value for key, value in expected.items() if math.isfinite(value)}
