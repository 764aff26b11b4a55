"""What a fleet's search has come to believe: worked out by its coordinator, and kept with its state for readers."""

import threading
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from model_opt.errors import InvalidInput
from model_opt.fleet.coordinator_service import CoordinatorService
from model_opt.fleet.proposer import Search
from model_opt.fleet.submission import Submission
from model_opt.search.conclusion import Conclusion, conclude, of_one_context, replay
from model_opt.search.objective import Limit, Objective
from model_opt.search.trial import Trial

_DESCRIPTION = "description/"
_OBJECTIVE, _SIMULATIONS, _CONCLUSION = "objective", "simulations", "conclusion"
MOST_TRIALS = 2_000
"""Of larger searches nothing is kept for readers: it would hold the coordinator up."""


class Concluder:
    """Works out what a search believes, once for all who ask while nothing more settles. For any thread."""

    def __init__(self, service: CoordinatorService, search: Search) -> None:
        self._service, self._search = service, search
        self._lock = threading.Lock()
        self._last: tuple[int, tuple[Trial, ...], Conclusion | None] | None = None

    def concluded(self) -> tuple[tuple[Trial, ...], Conclusion | None]:
        """The trials of the context in which most was measured, each with what all before it told; and what they tell,
        None where nothing was measured or given."""
        with self._lock:
            settled = self._service.trials()
            if self._last is None or self._last[0] != len(settled):
                noise = _noise(self._service.facts)
                searcher = self._search.searcher(self._service.state.book.budget, noise)
                trials = replay(searcher, of_one_context(settled))
                believed = conclude(searcher, trials) if trials or self._search.given else None
                self._last = len(settled), trials, believed
            return self._last[1:]

    def keep(self) -> None:
        """Keeps what an ended search believes among the facts, once."""
        kept, settled = self._service.facts.get(_CONCLUSION), len(self._service.trials())
        if settled > MOST_TRIALS or not settled or (isinstance(kept, Mapping) and kept.get("settled") == settled):
            return
        trials, conclusion = self.concluded()
        if conclusion is not None:
            predicted = [{name: list(pair) for name, pair in trial.predicted.items()} for trial in trials]
            told = {"settled": settled, "predicted": predicted, "importance": dict(conclusion.importance)}
            self._service.remember({_CONCLUSION: told})


def description_fact(worker: str, description: Mapping[str, Any]) -> dict[str, object]:
    """What a worker's evaluator says, as a fact that the coordinator keeps."""
    return {f"{_DESCRIPTION}{worker}": dict(description)}


def descriptions_of(facts: Mapping[str, object]) -> dict[str, Any]:
    """The descriptions among the coordinator's facts, by worker."""
    return {name.removeprefix(_DESCRIPTION): said for name, said in facts.items() if name.startswith(_DESCRIPTION)}


def wanted_facts(request: Submission) -> dict[str, object]:
    """What is wanted of a search, as facts."""
    return {_OBJECTIVE: asdict(request.rules.objective), _SIMULATIONS: request.rules.budget}


def read_wanted(facts: Mapping[str, Any]) -> tuple[Objective, int]:
    """What `wanted_facts` wrote: the objective, and the budget with its extensions. Raises `InvalidInput` where another
    version kept the search."""
    try:
        said = facts[_OBJECTIVE]
        objective = Objective(
            metric=said["metric"],
            maximize=said["maximize"],
            limits=tuple(Limit(**limit) for limit in said["limits"]),
            tie=None if said["tie"] is None else (said["tie"][0], said["tie"][1]),
        )
        return objective, int(facts.get("budget", facts[_SIMULATIONS]))
    except (KeyError, TypeError, IndexError) as error:
        raise InvalidInput(
            f"the search was kept by another version of model_opt ({error} is missing): look at it with that version"
        ) from error


def with_conclusion(trials: list[Trial], facts: Mapping[str, Any]) -> tuple[list[Trial], Mapping[str, float]]:
    """`trials` of one context with what was believed before each, and how much each decision matters; nothing of
    either where the search goes on, or no conclusion was kept."""
    kept = facts.get(_CONCLUSION)
    if not isinstance(kept, Mapping) or len(kept.get("predicted", ())) != len(trials):
        return trials, {}
    told = [
        replace(trial, predicted={name: (float(pair[0]), float(pair[1])) for name, pair in predicted.items()})
        for trial, predicted in zip(trials, kept["predicted"], strict=True)
    ]
    return told, kept["importance"]


def _noise(facts: Mapping[str, object]) -> dict[str, float | None]:
    """That of the first worker which knew one."""
    return next((dict(said["noise"]) for said in descriptions_of(facts).values() if said.get("noise")), {})
