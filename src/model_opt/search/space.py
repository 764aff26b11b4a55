"""The search space: ordered decisions, and the combinations of options that are not allowed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from model_opt.errors import InvalidInput, UnknownName
from model_opt.search.plan import Choice, Plan

Codes = NDArray[np.int16]
"""A plan as option numbers, `[decisions]`; valid inside one process only."""


@dataclass(frozen=True)
class Decision:
    """One choice of the search. The first option leaves the model alone.

    `ordered` says that neighbouring options are alike ("10 %", "20 %", "30 %"). `version` is that of the technique
    behind the decision; it is part of every plan's key.
    """

    name: str
    options: Sequence[str]
    ordered: bool = False
    version: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", tuple(self.options))
        if not self.name or not self.options:
            raise InvalidInput(f"decision {self.name!r} needs a name and at least one option")
        if any(not isinstance(option, str) for option in self.options):
            raise InvalidInput(f"decision {self.name!r}: options are strings, not {list(self.options)!r}")
        if len(set(self.options)) != len(self.options):
            raise InvalidInput(f"decision {self.name!r} names an option twice: {list(self.options)}")


@dataclass(frozen=True)
class Forbid:
    """A combination that is not allowed: all of these decisions at once, each with one of the options given."""

    when: Mapping[str, Iterable[str]]
    reason: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "when", {name: frozenset(options) for name, options in self.when.items()})


@dataclass(frozen=True)
class SearchSpace:
    """Ordered decisions with the combinations that are not allowed. The order is the order of composition.

    Leaving everything alone is always allowed: a rule that forbids only first options is refused. `frozen` choices
    are no decisions of the search, and are part of every plan of it.
    """

    decisions: Sequence[Decision]
    forbidden: Sequence[Forbid] = ()
    frozen: Sequence[Choice] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "decisions", tuple(self.decisions))
        object.__setattr__(self, "forbidden", tuple(self.forbidden))
        object.__setattr__(self, "frozen", tuple(self.frozen))
        names = [decision.name for decision in self.decisions]
        if len(set(names)) != len(names):
            raise InvalidInput(f"a decision's name occurs twice: {names}")
        for rule in self.forbidden:
            for name, options in rule.when.items():
                decision = self.decision(name)
                for option in options:
                    self._option_code(decision, option)
            if all(self.decision(name).options[0] in options for name, options in rule.when.items()):
                raise InvalidInput(f"a rule forbids leaving everything alone: {dict(rule.when)}")

    def decision(self, name: str) -> Decision:
        """The decision called `name`; raises `UnknownName`."""
        return self.decisions[self._index(name)]

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Options of each decision, `[decisions]`."""
        return np.array([len(decision.options) for decision in self.decisions], dtype=np.int64)

    @cached_property
    def total_plans(self) -> int:
        """How many plans there are, those that are not allowed included."""
        return int(np.prod([int(size) for size in self.sizes], dtype=object)) if len(self.decisions) else 1

    @cached_property
    def rules(self) -> NDArray[np.bool_]:
        """`[rules, decisions, widest]`: True where the rule's decision has that option; a decision that a rule does
        not name is True for every option, so a plan is illegal iff some rule is True along all its codes."""
        widest = int(self.sizes.max()) if len(self.decisions) else 1
        table = np.ones((len(self.forbidden), len(self.decisions), widest), dtype=np.bool_)
        for row, rule in enumerate(self.forbidden):
            for name, options in rule.when.items():
                column = self._index(name)
                table[row, column] = False
                for option in options:
                    table[row, column, self._option_code(self.decisions[column], option)] = True
        return table

    def allowed(self, codes: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Which of the plans `codes`, `[plans, decisions]`, break no rule: `[plans]`."""
        codes = np.atleast_2d(codes)
        if not len(self.forbidden):
            return np.ones(len(codes), dtype=np.bool_)
        columns = np.arange(len(self.decisions))
        broken = self.rules[:, columns, codes].all(axis=2)  # [rules, plans]
        return np.asarray(~broken.any(axis=0))

    def why_not(self, plan: Plan) -> str | None:
        """The reason of the first rule that `plan` breaks, or None."""
        assignment = self.assignment(plan)
        for rule in self.forbidden:
            if all(assignment[name] in options for name, options in rule.when.items()):
                return rule.reason or f"not allowed together: { {n: assignment[n] for n in rule.when} }"
        return None

    def plan(self, choices: Mapping[str, str]) -> Plan:
        """The plan that takes `choices` and leaves the other decisions alone; raises `UnknownName`."""
        made = []
        for name, option in choices.items():
            decision = self.decision(name)
            if self._option_code(decision, option):
                made.append(Choice(decision=name, option=option, version=decision.version))
        return Plan((*made, *self.frozen))

    def assignment(self, plan: Plan) -> dict[str, str]:
        """Every decision's option under `plan`, in the order of the decisions; raises `UnknownName`."""
        full = {decision.name: decision.options[0] for decision in self.decisions}
        for choice in self._free(plan):
            self._option_code(self.decision(choice.decision), choice.option)
            full[choice.decision] = choice.option
        return full

    def encode(self, plan: Plan) -> Codes:
        """`plan` as option numbers, `[decisions]`; raises `UnknownName`."""
        codes = np.zeros(len(self.decisions), dtype=np.int16)
        for choice in self._free(plan):
            column = self._index(choice.decision)
            codes[column] = self._option_code(self.decisions[column], choice.option)
        return codes

    def decode(self, codes: NDArray[np.integer]) -> Plan:
        """The plan of option numbers `codes`, `[decisions]`."""
        pairs = zip(self.decisions, codes, strict=True)
        chosen = [
            Choice(decision=decision.name, option=decision.options[code], version=decision.version)
            for decision, code in pairs
            if code
        ]
        return Plan((*chosen, *self.frozen))

    def fits(self, plan: Plan) -> bool:
        """Whether every choice of `plan` is an option here, of the same technique's version, and no rule is broken."""
        if not set(self.frozen) <= set(plan.choices):
            return False
        for choice in self._free(plan):
            column = self._positions.get(choice.decision)
            if column is None or choice.option not in self.decisions[column].options:
                return False
            if choice.version != self.decisions[column].version:
                return False
        return self.why_not(plan) is None

    def _free(self, plan: Plan) -> list[Choice]:
        return [choice for choice in plan.choices if choice not in self.frozen]

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {decision.name: position for position, decision in enumerate(self.decisions)}

    def _index(self, name: str) -> int:
        if name not in self._positions:
            raise UnknownName("decision", name, self._positions)
        return self._positions[name]

    @staticmethod
    def _option_code(decision: Decision, option: str) -> int:
        if option not in decision.options:
            raise UnknownName(f"option of {decision.name!r}:", option, decision.options)
        return decision.options.index(option)
