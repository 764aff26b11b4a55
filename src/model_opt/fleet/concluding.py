"""What a fleet's search has come to believe: worked out by its coordinator, and kept with its state for readers."""

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

DESCRIPTION = "description/"
"""How the names of facts begin that are a worker's evaluator's description."""
_OBJECTIVE, _SIMULATIONS, _CONCLUSION = "objective", "simulations", "conclusion"
MOST_TRIALS = 2_000
"""Of larger searches nothing is kept for readers: it would hold the coordinator up."""


def concluded(service: CoordinatorService, search: Search) -> tuple[tuple[Trial, ...], Conclusion | None]:
    """The trials of the context in which most was measured, each with what all before it told; and what they tell,
    None where nothing was measured or given."""
    searcher = search.searcher(service.state.book.budget, _noise(service.facts))
    trials = replay(searcher, of_one_context(service.trials()))
    return trials, conclude(searcher, trials) if trials or search.given else None


def keep_conclusion(service: CoordinatorService, search: Search) -> None:
    """Keeps what an ended search believes among the facts, once."""
    kept, settled = service.facts.get(_CONCLUSION), len(service.trials())
    if settled > MOST_TRIALS or not settled or (isinstance(kept, Mapping) and kept.get("settled") == settled):
        return
    trials, conclusion = concluded(service, search)
    if conclusion is not None:
        predicted = [{name: list(pair) for name, pair in trial.predicted.items()} for trial in trials]
        told = {"settled": settled, "predicted": predicted, "importance": dict(conclusion.importance)}
        service.remember({_CONCLUSION: told})


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


def _noise(facts: Mapping[str, object]) -> Mapping[str, float | None]:
    """That of the first worker which knew one."""
    for name, said in facts.items():
        if name.startswith(DESCRIPTION) and isinstance(said, Mapping) and said.get("noise"):
            noise: Mapping[str, float | None] = said["noise"]
            return noise
    return {}
