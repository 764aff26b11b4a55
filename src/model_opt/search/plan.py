"""A plan: what to do to a model, as a set of choices with a key that every machine computes alike."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True, kw_only=True, order=True)
class Choice:
    """One decision that is not left alone. `version` is that of the technique behind it."""

    decision: str
    option: str
    version: int = 1


@dataclass(frozen=True)
class Plan:
    """The choices of a complete plan, sorted by decision; decisions that are left alone do not occur.

    The empty plan is the user's model as it is. Make plans of a space with `SearchSpace.plan`.
    """

    choices: tuple[Choice, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", tuple(sorted(self.choices)))

    @cached_property
    def key(self) -> str:
        """blake2b-128 over the sorted, length-prefixed choices, as 32 hexadecimal digits."""
        digest = hashlib.blake2b(digest_size=16)
        for choice in self.choices:
            for part in (choice.decision, choice.option, str(choice.version)):
                raw = part.encode()
                digest.update(len(raw).to_bytes(4, "big") + raw)
        return digest.hexdigest()

    def option(self, decision: str) -> str | None:
        """The chosen option of `decision`, or None where it is left alone."""
        return next((c.option for c in self.choices if c.decision == decision), None)

    def __str__(self) -> str:
        return ", ".join(f"{c.decision}={c.option}" for c in self.choices) or "leave alone"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as bare texts and numbers, a quarter of what its objects take: fleets send plans all the time."""
        return _unpickled, tuple((c.decision, c.option, c.version) for c in self.choices)


def _unpickled(*choices: tuple[str, str, int]) -> Plan:
    return Plan(tuple(Choice(decision=name, option=option, version=version) for name, option, version in choices))


def read_plan(raw: Mapping[str, Any]) -> Plan:
    """Reads what `asdict` made of a plan."""
    return Plan(tuple(Choice(**choice) for choice in raw["choices"]))
