"""What a search is told of similar networks: merged over origins, discounted, and named."""

import time
from dataclasses import replace

import numpy as np
import pytest

from model_opt.autotuner.engine import RULES_FIRST, start_with
from model_opt.autotuner.strategies import strategies
from model_opt.federation.known import Neighbour
from model_opt.federation.moments import Moments
from model_opt.federation.recall import MOST_PLANS, recalled_from
from model_opt.federation.row import Row
from model_opt.search.context import Context
from model_opt.search.evaluator import Measurement
from model_opt.search.model_signature import Family, ModelSignature, Stage
from model_opt.search.objective import Limit, Objective
from model_opt.search.plan import Plan
from model_opt.search.searcher import Evidence, Searcher
from model_opt.search.space import Decision, SearchSpace

SPACE = SearchSpace(
    [
        Decision("prune", ["0", "0.25", "0.5", "0.7"], True),
        Decision("low_rank", ["0", "0.75", "0.5", "0.25"], True),
        Decision("precision", ["fp32", "bf16", "int8_static"]),
        Decision("runtime", ["torch", "openvino", "onnxruntime"]),
    ]
)
HERE = Context(
    device="cpu", libraries=(("python", "3.11"), ("torch", "2")), dtype="float32", threads=1, batch=8, input_shapes=()
)
WANTED = Objective(metric="log_speedup", maximize=True, limits=(Limit(metric="accuracy_drop", bound=0.01),))
PLANS = [SPACE.decode(np.array(codes, dtype=np.int16)) for codes in np.ndindex(4, 4, 3, 3)]


def network(width: int) -> ModelSignature:
    stages = (Stage(width=width, layers=4, share=0.3), Stage(width=2 * width, layers=4, share=0.7))
    return ModelSignature(
        family=Family.CNN, parameters=width**2 * 100, layers=9, operators={"conv_kxk": 8, "linear": 1}, stages=stages
    )


def truth(plan: Plan, harm: float = 1.0) -> dict[str, float]:
    """Figures with main effects and an interaction; `harm` scales the accuracy lost."""
    prune, rank, precision, runtime = SPACE.encode(plan).tolist()
    speed = (
        0.25 * prune + 0.15 * rank + [0.0, 0.4, 0.9][precision] + [0.0, 0.5, 0.4][runtime] - 0.2 * (rank * runtime > 3)
    )
    drop = harm * (0.003 * prune**2 + 0.002 * rank + [0.0, 0.0005, 0.002][precision])
    return {"log_speedup": speed, "accuracy_drop": drop, "log_size_ratio": 0.3 * prune + 0.2 * rank + 0.7 * precision}


def rows(
    signature: ModelSignature, plans: list[Plan], origin: str = "a", context: Context = HERE, off: float = 0.0
) -> list[Row]:
    return [
        Row(
            federation="local",
            signature=signature.key,
            plan=plan,
            context=context.key,
            origin=origin,
            epoch="e",
            sequence=1,
            moments={
                name: Moments.of([value + (off if name == "log_speedup" else 0.0)] * 4)
                for name, value in truth(plan).items()
            },
        )
        for plan in plans
    ]


def recalled(near: list[Neighbour], trust: dict[str, float] | None = None, contexts=(HERE,), heard=None):
    known = {context.key: context for context in contexts}
    return recalled_from(near, SPACE, HERE, WANTED, contexts=known, trust=trust or {}, heard=heard or {})


def test_origins_are_merged_by_trust_and_named():
    one = network(32)
    told = rows(one, PLANS[5:30]) + rows(one, PLANS[5:30], "b", off=0.4)
    known = recalled([Neighbour(signature=one, similarity=0.99, rows=tuple(told))], {"b": 0.0})
    assert known.origins == ("a",)
    alone = {piece.plan: piece.mean for piece in known.evidence if piece.metric == "log_speedup"}
    assert alone[PLANS[7]] == pytest.approx(truth(PLANS[7])["log_speedup"])
    both = recalled([Neighbour(signature=one, similarity=0.99, rows=tuple(told))])
    assert both.origins == ("a", "b") and both.sources[0].samples == {"a": 100, "b": 100}
    middle = {piece.plan: piece for piece in both.evidence if piece.metric == "log_speedup"}[PLANS[7]]
    assert middle.mean == pytest.approx(truth(PLANS[7])["log_speedup"] + 0.2)
    assert middle.variance > 0.01  # origins that differ leave doubt
    assert both.sources[0].confidence["log_speedup"] < known.sources[0].confidence["log_speedup"]


def test_figures_that_do_not_foretell_one_another_are_not_heeded():
    one = network(32)
    plans = PLANS[::4]
    told = rows(one, plans)
    order = np.random.default_rng(0).permutation(len(told))
    mixed = [replace(row, moments=told[place].moments) for row, place in zip(told, order, strict=True)]
    true, false = (
        recalled([Neighbour(signature=one, similarity=0.99, rows=tuple(lot))]) for lot in (told, mixed)
    )  # fmt: skip
    assert true.sources[0].sound and true.plans and len(true.evidence) == 3 * len(plans)
    assert not false.sources[0].sound and not false.plans and not false.evidence and false.rows == 0
    assert "not used" in false.describe() and false.origins == () and false.samples == 0
    few = recalled([Neighbour(signature=one, similarity=0.99, rows=tuple(mixed[:8]))])
    assert few.sources[0].sound  # too few to tell


def test_what_was_not_heard_of_for_long_counts_less():
    one = network(32)
    told = rows(one, PLANS[5:30]) + rows(one, PLANS[5:30], "b", off=0.4)
    near = [Neighbour(signature=one, similarity=0.99, rows=tuple(told))]
    fresh, old = recalled(near), recalled(near, heard={("b", "e"): time.time() - 3 * 365 * 86400.0})
    assert old.sources[0].shares["b"] < fresh.sources[0].shares["b"]
    assert old.sources[0].samples == fresh.sources[0].samples


def test_the_best_known_plan_and_the_first_strategy_come_first_and_more_strategies_only_where_nothing_is_known():
    one = network(32)
    known = recalled([Neighbour(signature=one, similarity=0.99, rows=tuple(rows(one, PLANS)))])
    within = [plan for plan in PLANS[1:] if truth(plan)["accuracy_drop"] <= 0.01]
    assert known.plans[0] == max(within, key=lambda plan: truth(plan)["log_speedup"])
    by_far = [plan for plan in within if truth(plan)["accuracy_drop"] <= 0.0025]
    assert known.plans[1] == max(by_far, key=lambda plan: truth(plan)["log_speedup"])
    assert start_with(known.plans, Family.CNN, SPACE) == [known.plans[0], strategies(Family.CNN, SPACE)[0]]
    assert len(start_with((), Family.CNN, SPACE)) == RULES_FIRST
    assert len({piece.plan for piece in known.evidence}) == min(len(PLANS), MOST_PLANS)


def test_other_hardware_counts_less_and_unknown_hardware_not_at_all():
    one = network(32)
    coarse = replace(HERE, libraries=(("torch", "2"),))
    threads, foreign = replace(HERE, threads=8), replace(HERE, device="another")
    sources = {}
    for name, context in (("coarse", coarse), ("threads", threads), ("foreign", foreign)):
        near = [Neighbour(signature=one, similarity=0.99, rows=tuple(rows(one, PLANS[:40], context=context)))]
        sources[name] = recalled(near, contexts=(HERE, context))
    assert sources["coarse"].sources[0].here and not sources["threads"].sources[0].here
    assert sources["threads"].sources[0].unlike > sources["coarse"].sources[0].unlike
    assert {piece.metric for piece in sources["foreign"].evidence} == {"log_size_ratio"}
    assert recalled([]).describe() == "the knowledge base knows no similar model"


def searcher(evidence: tuple[Evidence, ...] = ()) -> Searcher:
    return Searcher(SPACE, WANTED, budget=30, seed=3, evidence=evidence)


def told(search: Searcher, many: int, harm: float = 1.0) -> None:
    for _ in range(many):
        proposal = search.ask()
        assert proposal is not None
        search.tell(Measurement(plan=proposal.plan, samples={n: (v,) for n, v in truth(proposal.plan, harm).items()}))


def evidence(values: dict[Plan, dict[str, float]]) -> tuple[Evidence, ...]:
    return tuple(
        Evidence(plan=plan, metric=metric, mean=value, variance=1e-5, source="elsewhere", unlike=0.05)
        for plan, metrics in values.items()
        for metric, value in metrics.items()
    )


def test_values_of_a_source_are_brought_to_this_problems_scale():
    """Elsewhere every plan loses four times the accuracy: after a few plans that is known here of plans never tried."""
    search = searcher(evidence({plan: truth(plan, 4.0) for plan in PLANS[::3]}))
    told(search, 6)
    tried = {outcome.plan for outcome in search.observations}
    untried = [plan for plan in PLANS[1::3] if plan not in tried and 0.004 < truth(plan)["accuracy_drop"] < 0.02]
    guess = np.array([one["accuracy_drop"].mean for one in search.predict(untried)])
    right = np.array([truth(plan)["accuracy_drop"] for plan in untried])
    assert np.median(np.abs(guess - right)) < np.median(4 * right - right) / 2


def test_a_source_that_misleads_is_soon_believed_less_than_one_that_does_not():
    order = np.random.default_rng(0).permutation(len(PLANS))
    known = PLANS[::3]
    lies = {plan: truth(PLANS[order[i]]) for i, plan in enumerate(known)}
    honest, misled = searcher(evidence({plan: truth(plan) for plan in known})), searcher(evidence(lies))
    told(honest, 9)
    told(misled, 9)
    for metric in ("log_speedup", "accuracy_drop"):
        assert misled.source_weights()["elsewhere"][metric] < honest.source_weights()["elsewhere"][metric]
    assert honest.recommend().plan == max(
        (plan for plan in PLANS if truth(plan)["accuracy_drop"] <= 0.01), key=lambda plan: truth(plan)["log_speedup"]
    )
