"""What earlier searches have measured, recalled before another one."""

import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np

from model_opt.federation.known import Neighbour, rows_for
from model_opt.federation.last_heard import Epoch, last_heard
from model_opt.federation.merge_origins import Merged, merge_origins
from model_opt.federation.recorder import deployment_origin
from model_opt.federation.row import Row
from model_opt.federation.similarities import similarities
from model_opt.federation.store import Inspection, KnowledgeStore
from model_opt.federation.trust import shares
from model_opt.metrics import METRICS, Transfer, named
from model_opt.search.context import Context
from model_opt.search.encoding import Encoding
from model_opt.search.model_signature import ModelSignature
from model_opt.search.objective import Objective
from model_opt.search.plan import Plan
from model_opt.search.searcher import Evidence
from model_opt.search.sources import leave_one_out
from model_opt.search.space import SearchSpace

TRANSFERRED = named(lambda metric: metric.transfers is not Transfer.NOBODY)
"""What may say something of another model or context: never an absolute latency."""

NEIGHBOURS = 5
LEAST_SIMILARITY = 0.8
MOST_PLANS = 150
"""How many plans of other networks a search takes in, the most similar networks' first."""
BEST_PLANS = 4
"""How many of the best known plans are named."""
CAREFUL = 0.25
"""The share of an upper limit within which a plan keeps it by far."""
LEFT_OUT = 80
"""How many plans are left out, each in turn, to see how well the surrogate does without them."""
FORETOLD, ENOUGH = 0.3, 12
"""Of `ENOUGH` plans or more each must be foretold by the others: this share of the variance of their figures."""
LEAST_UNLIKE, UNLIKE, ELSEWHERE = 0.05, 2.0, 0.2
"""How unlike a source is expected to be: at least, per unit of 1 - similarity, and added in another context."""


@dataclass(frozen=True, kw_only=True)
class KnownNetwork:
    """What is known of one network: `samples` and `shares` (of the merged figures) by origin, and `confidence` by
    metric, ω²/(ω² + V): V is the variance of what was merged, ω² that of the surrogate's error where it leaves a plan
    out. `here` says whether some of it was measured in this very context. `sound`: its figures foretell one another, as
    those of a network do; where they do not they are of no use for other plans, and are not used."""

    signature: str
    similarity: float
    plans: int
    samples: Mapping[str, int]
    shares: Mapping[str, float]
    confidence: Mapping[str, float]
    outliers: tuple[str, ...]
    here: bool
    sound: bool

    @property
    def unlike(self) -> float:
        """How unlike the network at hand it is expected to be; the search learns the rest."""
        return max(LEAST_UNLIKE, UNLIKE * (1 - self.similarity)) + (0.0 if self.here else ELSEWHERE)


@dataclass(frozen=True, kw_only=True)
class Recalled:
    """What the knowledge base says of a model: evidence for the surrogate, the plans that did best, and the sources."""

    evidence: tuple[Evidence, ...] = ()
    plans: tuple[Plan, ...] = ()
    sources: tuple[KnownNetwork, ...] = ()
    rows: int = 0
    exact: bool = False

    @property
    def origins(self) -> tuple[str, ...]:
        """Every origin that was used."""
        return tuple(sorted({origin for source in self.sources if source.sound for origin in source.samples}))

    @property
    def samples(self) -> int:
        """How many samples the figures rest on."""
        return sum(count for source in self.sources if source.sound for count in source.samples.values())

    def describe(self) -> str:
        """One line for people."""
        if not self.sources:
            return "the knowledge base knows no similar model"
        sound = sum(source.sound for source in self.sources)
        if not sound:
            return "what is known of similar models does not hang together, and is not used"
        others = sound - self.exact
        whose = [*(["this very architecture"] if self.exact else []), *([f"{others} similar ones"] if others else [])]
        return f"starting from {self.rows} measured plans ({self.samples} samples) of {' and '.join(whose)}"

    def as_json(self) -> dict[str, object]:
        """What the result keeps: how much, how similar, from whom, and what was to be measured first."""
        return {
            "rows": self.rows,
            "samples": self.samples,
            "signatures": {source.signature: round(source.similarity, 4) for source in self.sources},
            "origins": list(self.origins),
            "exact": self.exact,
            "sources": [asdict(source) for source in self.sources],
            "expected": _expected(self.evidence, self.plans),
        }


def recall(
    store: KnowledgeStore, signature: ModelSignature, space: SearchSpace, context: Context, objective: Objective
) -> Recalled:
    """Everything known of plans of `space` on this and similar architectures, merged over origins by how far this
    deployment trusts them. Raises `StoreError`."""
    near = [one for one in rows_for(store, signature, NEIGHBOURS) if one.similarity >= LEAST_SIMILARITY]
    contexts = store.contexts() if isinstance(store, Inspection) else {context.key: context}
    trust = shares(deployment_origin())
    return recalled_from(near, space, context, objective, contexts=contexts, trust=trust, heard=last_heard())


def recalled_from(
    near: Iterable[Neighbour],
    space: SearchSpace,
    context: Context,
    objective: Objective,
    *,
    contexts: Mapping[str, Context],
    trust: Mapping[str, float],
    heard: Mapping[Epoch, float] | None = None,
) -> Recalled:
    """What `near`, most similar first, tell of plans of `space` in `context`; `contexts` are by key.

    `heard` says when each epoch was last heard of (seconds since 1970): those that are not named are new.
    """
    sources: list[KnownNetwork] = []
    evidence: list[Evidence] = []
    best: list[Plan] = []
    taken: set[tuple[str, Plan]] = set()
    here = {context.key, *_same(context, contexts)}
    alike = {metric: similarities(context, contexts, metric) | dict.fromkeys(here, 1.0) for metric in TRANSFERRED}
    for one in near:
        rows = [row for row in one.rows if space.fits(row.plan)]
        merged = _merged(rows, alike, trust, heard)
        if not merged:
            continue
        by_key = {row.plan.key: row.plan for row in rows}
        errors = {metric: _error(table, by_key, space) for metric, table in merged.items()}
        sound = all(_sound(merged[m], errors[m], METRICS[m].floor) for m in objective.metrics if m in merged)
        source = _source(one, rows, merged, errors, here, sound=sound)
        sources.append(source)
        if not sound:
            continue
        means = _means(merged, by_key)
        chosen = _chosen(means, objective, MOST_PLANS - len(taken))
        taken |= {(one.signature.key, plan) for plan in chosen}
        evidence += _evidence(merged, by_key, chosen, source)
        best += [plan for plan in _best(means, objective) if plan not in best]
    return Recalled(
        evidence=tuple(evidence),
        plans=tuple(best[:BEST_PLANS]),
        sources=tuple(sources),
        rows=len(taken),
        exact=any(source.similarity == 1.0 and source.sound for source in sources),
    )


def _merged(
    rows: Sequence[Row],
    alike: Mapping[str, Mapping[str, float]],
    trust: Mapping[str, float],
    heard: Mapping[Epoch, float] | None,
) -> dict[str, Merged]:
    """Each ratio of `rows`, merged over origins; metrics that nobody tells are left out. `alike` has the similarity of
    every context, by metric."""
    told = partial(merge_origins, rows, trust=trust, heard_at=heard, now=time.time())
    made = {metric: told(metric=metric, floor=METRICS[metric].floor, similarity=alike[metric]) for metric in alike}
    return {metric: merged for metric, merged in made.items() if len(merged)}


def _same(context: Context, contexts: Mapping[str, Context]) -> list[str]:
    """The keys of contexts that are this one, as far as they tell: what leaves a deployment names few libraries."""
    bare, ours = replace(context, libraries=()), set(context.libraries)
    return [key for key, one in contexts.items() if replace(one, libraries=()) == bare and set(one.libraries) <= ours]


def _means(merged: Mapping[str, Merged], by_key: Mapping[str, Plan]) -> dict[Plan, dict[str, float]]:
    means: dict[Plan, dict[str, float]] = defaultdict(dict)
    for metric, table in merged.items():
        for subject, mean in zip(table.subjects, table.mean.tolist(), strict=True):
            means[by_key[subject.plan]][metric] = mean
    return means


def _chosen(means: Mapping[Plan, Mapping[str, float]], objective: Objective, most: int) -> set[Plan]:
    """All plans, or of too many the better half of `most`, and as many of the rest at even distances in their order."""
    ranked = sorted(means, key=lambda plan: objective.order(means[plan]))
    if len(ranked) <= most:
        return set(ranked)
    leaders, rest = ranked[: most // 2], ranked[most // 2 :]
    even = np.linspace(0, len(rest) - 1, max(0, most - len(leaders))).astype(int)
    return {*leaders, *(rest[place] for place in even)}


def _best(means: Mapping[Plan, Mapping[str, float]], objective: Objective) -> list[Plan]:
    """The plans that do something and keep the limits: the best, then the best of those that keep them by far (another
    network may lose several times as much), then the others, best first."""
    kept = [plan for plan in means if plan.choices and objective.violation(means[plan]) == 0]
    ranked = sorted(kept, key=lambda plan: objective.order(means[plan]))
    careful = replace(
        objective,
        limits=tuple(replace(one, bound=one.bound * CAREFUL) if one.at_most else one for one in objective.limits),
    )
    safe = [plan for plan in ranked if careful.violation(means[plan]) == 0]
    return list(dict.fromkeys([*ranked[:1], *safe[:1], *ranked]))


def _source(
    one: Neighbour,
    rows: Sequence[Row],
    merged: Mapping[str, Merged],
    errors: Mapping[str, float],
    here: Collection[str],
    *,
    sound: bool,
) -> KnownNetwork:
    samples: dict[str, int] = defaultdict(int)
    weight: dict[str, float] = defaultdict(float)
    for row in rows:
        samples[row.origin] += max(moments.n for moments in row.moments.values())
    for table in merged.values():
        for told in table.sources:
            for origin, share in told.items():
                weight[origin] += share
    total = sum(weight.values())
    return KnownNetwork(
        signature=one.signature.key,
        similarity=one.similarity,
        plans=max(map(len, merged.values())),
        samples={origin: samples[origin] for origin in sorted(weight)},
        shares={origin: weight[origin] / total for origin in sorted(weight)},
        confidence={
            metric: float(np.mean(table.confidence(max(errors[metric], METRICS[metric].floor))))
            for metric, table in merged.items()
        },
        outliers=tuple(sorted({name for table in merged.values() for names in table.outliers for name in names})),
        here=any(row.context in here for row in rows),
        sound=sound,
    )


def _error(merged: Merged, by_key: Mapping[str, Plan], space: SearchSpace) -> float:
    """The variance of the surrogate's error at a plan that is left out, of one metric."""
    some = np.linspace(0, len(merged) - 1, min(len(merged), LEFT_OUT)).astype(int)
    plans = [by_key[merged.subjects[place].plan] for place in some]
    return leave_one_out(Encoding(space), plans, merged.mean[some], merged.variance[some])


def _sound(merged: Merged, error: float, floor: float) -> bool:
    """Whether the figures foretell one another, or are too few or too much alike for that to be told."""
    variance = float(np.var(merged.mean))
    return len(merged) < ENOUGH or error <= max((1 - FORETOLD) * variance, 4 * floor)


def _evidence(
    merged: Mapping[str, Merged], by_key: Mapping[str, Plan], chosen: Collection[Plan], source: KnownNetwork
) -> Iterable[Evidence]:
    for metric, table in merged.items():
        figures = zip(table.subjects, table.mean.tolist(), table.variance.tolist(), table.agreed.tolist(), strict=True)
        for subject, mean, variance, agreed in figures:
            plan = by_key[subject.plan]
            if agreed and plan in chosen:
                told = max(variance, METRICS[metric].floor)
                yield Evidence(
                    plan=plan, metric=metric, mean=mean, variance=told, source=source.signature, unlike=source.unlike
                )


def _expected(evidence: Iterable[Evidence], plans: Sequence[Plan]) -> list[dict[str, object]]:
    """What the sources say of `plans`, by the first source that knows them."""
    told: dict[Plan, dict[str, float]] = {plan: {} for plan in plans}
    for piece in evidence:
        if piece.plan in told:
            told[piece.plan].setdefault(piece.metric, piece.mean)
    return [{"plan": {c.decision: c.option for c in plan.choices}, "metrics": told[plan]} for plan in plans]
