"""What there is to say of a runtime, said once: each is declared in a file of its own in `declared`.

Nothing here imports torch: `doctor` and plain lists ask, too.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from model_opt.compression.technique import Machine, Material, Technique

if TYPE_CHECKING:
    from torch import nn

Make = Callable[["nn.Module", str, Material], "nn.Module"]
"""`(model, precision, material) -> module`; raises `TechniqueError` where it cannot be made."""
Has = Callable[[Machine], bool]
"""Whether a machine has what it takes."""


def always(_: object) -> bool:
    """Nothing is asked for."""
    return True


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """What executes a model.

    `packages` are needed, each with what it is good for (empty where `doctor` need not name it); `more` are good for
    some of the `precisions`, which say what else a machine must have for them. `timed` are the packages whose version
    a latency depends on. `suits` says whether a model has anything for it.
    """

    name: str
    make: Make
    technique: Technique
    precisions: Mapping[str, Has]
    devices: tuple[str, ...] = ("cpu",)
    packages: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, str] = field(default_factory=dict)
    timed: tuple[str, ...] = ()
    needs: Has = always
    suits: "Callable[[nn.Module], bool]" = always
    quantises_itself: bool = False
    """Whether it takes the model in float32, and makes the plan's precision of it."""
    compiles: bool = False
    """Whether it takes 15–170 s to prepare."""
    recompiles: bool = False
    """Whether it compiles anew for whatever it was not compiled for: looking at other batches takes minutes."""
    weight: float = 1.0
    """Its prior weight in a search; what costs minutes of preparation weighs less."""
    seconds: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    """Precision ("" for any) → seconds that a plan takes longer: for itself, a million parameters, and a call of the
    original."""
    once_s: Mapping[str, float] = field(default_factory=dict)
    """Precision ("" for any) → seconds more that a measuring process's first plan takes: libraries are imported."""

    def is_there(self, machine: Machine) -> bool:
        """Whether it can be had on `machine`."""
        kind = machine.device.partition(":")[0]
        return kind in self.devices and set(self.packages) <= set(machine.packages) and self.needs(machine)

    def runs(self, machine: Machine) -> frozenset[str]:
        """The precisions that it can run there."""
        return frozenset(name for name, has in self.precisions.items() if has(machine))
