"""Search over plans: any space of decisions, any evaluator. numpy, scipy and numba only."""

from model_opt.search.beliefs import Estimate
from model_opt.search.context import Context
from model_opt.search.evaluator import Evaluator, Failure, Measurement, Outcome, Phase, Purpose, Reason
from model_opt.search.front import Observation, SearchResult, search
from model_opt.search.ledger import Evidence
from model_opt.search.objective import Limit, Objective
from model_opt.search.ownership import owned_by, owner
from model_opt.search.plan import Choice, Plan
from model_opt.search.recommendation import Recommendation
from model_opt.search.searcher import OptionSummary, Proposal, Searcher
from model_opt.search.signature import Family, Signature
from model_opt.search.space import Decision, Forbid, SearchSpace

__all__ = [
    "Choice",
    "Context",
    "Decision",
    "Estimate",
    "Evaluator",
    "Evidence",
    "Failure",
    "Family",
    "Forbid",
    "Limit",
    "Measurement",
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
    "Signature",
    "owned_by",
    "owner",
    "search",
]
