"""Search over plans: any space of decisions, any evaluator. numpy, scipy and numba only."""

from importlib import import_module
from typing import TYPE_CHECKING

from model_opt.search.context import Context
from model_opt.search.evaluator import Description, Evaluator, Failure, Measurement, Outcome, Phase, Purpose, Reason
from model_opt.search.model_signature import Family, ModelSignature
from model_opt.search.objective import Limit, Objective
from model_opt.search.ownership import owned_by, owner
from model_opt.search.plan import Choice, Plan
from model_opt.search.space import Decision, Forbid, SearchSpace

if TYPE_CHECKING:
    from model_opt.search.any_problem import Observation, SearchResult, search
    from model_opt.search.beliefs import Estimate
    from model_opt.search.ledger import Evidence
    from model_opt.search.recommendation import Recommendation
    from model_opt.search.searcher import OptionSummary, Proposal, Searcher

_ON_FIRST_USE = {
    "Estimate": "beliefs",
    "Evidence": "ledger",
    "Observation": "any_problem",
    "OptionSummary": "searcher",
    "Proposal": "searcher",
    "Recommendation": "recommendation",
    "SearchResult": "any_problem",
    "Searcher": "searcher",
    "search": "any_problem",
}
"""Name → module of what loads compiled code (0.6 s): a process that only measures does without (PEP 562)."""

__all__ = [
    "Choice",
    "Context",
    "Decision",
    "Description",
    "Estimate",
    "Evaluator",
    "Evidence",
    "Failure",
    "Family",
    "Forbid",
    "Limit",
    "Measurement",
    "ModelSignature",
    "Objective",
    "Observation",
    "OptionSummary",
    "Outcome",
    "Phase",
    "Plan",
    "Proposal",
    "Purpose",
    "Reason",
    "Recommendation",
    "SearchResult",
    "SearchSpace",
    "Searcher",
    "owned_by",
    "owner",
    "search",
]


def __getattr__(name: str) -> object:
    """Loads what is first used now."""
    if name not in _ON_FIRST_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ON_FIRST_USE[name]}"), name)
