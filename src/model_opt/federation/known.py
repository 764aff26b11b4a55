"""Asking a store: what is known of a model and of those like it, and what there is in all."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from model_opt.federation.row import Row
from model_opt.federation.store import Counts, Inspection, KnowledgeStore, OriginSummary
from model_opt.search.model_signature import ModelSignature


class InspectableStore(KnowledgeStore, Inspection, Protocol):
    """A store that can also tell about itself: all that `open_store` makes."""


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A known signature, how like the asked one it is (cosine, 1 for itself), and all its rows."""

    signature: ModelSignature
    similarity: float
    rows: tuple[Row, ...]


def rows_for(store: KnowledgeStore, signature: ModelSignature, k: int = 3) -> list[Neighbour]:
    """The rows of `signature` itself, if it is known, and of its `k` nearest others that have rows; best first."""
    exact = store.rows([signature.key])
    found = [Neighbour(signature=signature, similarity=1.0, rows=tuple(exact))] if exact else []
    wanted = k + len(found)
    for near, similarity in store.nearest(signature, k + 1):
        if near.key == signature.key or len(found) >= wanted:
            continue
        rows = store.rows([near.key])
        if rows:
            found.append(Neighbour(signature=near, similarity=similarity, rows=tuple(rows)))
    return found


@dataclass(frozen=True, kw_only=True)
class Stats:
    """What a store holds. `samples` counts those of each metric over all rows."""

    federation: str
    counts: Counts
    samples: Mapping[str, int]
    origins: tuple[OriginSummary, ...]
    gaps: Mapping[str, tuple[tuple[int, int], ...]]
    """By "origin/epoch": the sequences (first, last) that are missing."""


def stats(store: InspectableStore) -> Stats:
    """Counts, samples, origins and gaps of a store; reads all of it."""
    samples: dict[str, int] = {}
    for row in store.rows():
        for name, moments in row.moments.items():
            samples[name] = samples.get(name, 0) + moments.n
    return Stats(
        federation=store.federation,
        counts=store.counts(),
        samples=dict(sorted(samples.items())),
        origins=tuple(store.origins()),
        gaps={f"{origin}/{epoch}": at.missing for (_, origin, epoch), at in store.cursors().items() if at.missing},
    )


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """One signature and what is known of it. `metrics` has the number of samples of each."""

    signature: ModelSignature
    plans: int
    rows: int
    origins: tuple[str, ...]
    metrics: Mapping[str, int]


def show(store: InspectableStore) -> list[KnownModel]:
    """Every known model, those with most rows first."""
    by_key: dict[str, list[Row]] = {}
    for row in store.rows():
        by_key.setdefault(row.signature, []).append(row)
    signatures = store.signatures()
    models = [_known(signatures[key], rows) for key, rows in by_key.items() if key in signatures]
    return sorted(models, key=lambda model: (-model.rows, model.signature.key))


def _known(signature: ModelSignature, rows: list[Row]) -> KnownModel:
    metrics: dict[str, int] = {}
    for row in rows:
        for name, moments in row.moments.items():
            metrics[name] = metrics.get(name, 0) + moments.n
    return KnownModel(
        signature=signature,
        plans=len({row.plan.key for row in rows}),
        rows=len(rows),
        origins=tuple(sorted({row.origin for row in rows})),
        metrics=dict(sorted(metrics.items())),
    )
