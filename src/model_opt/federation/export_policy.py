"""What may leave a deployment: rows with coarse signatures, names from closed lists, counts that are not too small."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from model_opt.errors import InvalidInput
from model_opt.federation.fold import fold
from model_opt.federation.moments import Moments
from model_opt.federation.row import Row
from model_opt.metrics import METRICS
from model_opt.search.context import Context
from model_opt.search.model_signature import OPERATORS, ModelSignature
from model_opt.search.plan import Plan

DECISIONS = frozenset({"clean", "prune", "low_rank", "distil", "token_merging", "precision", "runtime"})
LIBRARIES = frozenset({"torch", "torchvision", "openvino", "nncf", "onnxruntime", "torchao", "torch_tensorrt"})
_STAGE = re.compile(r"stage\d{1,3}")
_OPTION = re.compile(r"[A-Za-z0-9_.+=-]{1,40}")
_DEVICE = re.compile(r"[\x20-\x7e]{1,200}")


@dataclass(frozen=True, kw_only=True)
class ExportPolicy:
    """The lists of what may leave. `least_plans` is how many plans of an architecture must have been measured before
    any of them leaves, `least_samples` how many samples a metric of a row must have."""

    metrics: frozenset[str] = frozenset(METRICS)
    decisions: frozenset[str] = DECISIONS
    libraries: frozenset[str] = LIBRARIES
    least_plans: int = 3
    least_samples: int = 1

    def __post_init__(self) -> None:
        if self.least_plans < 1 or self.least_samples < 1:
            raise InvalidInput("minimum counts are at least 1")


ExportedRow = tuple[Plan, Context, Mapping[str, Moments]]
"""A row that leaves: plan, context, moments by metric."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """Rows by coarse signature, in the order of the signatures' keys, and how many rows stay, by reason."""

    rows: tuple[tuple[ModelSignature, tuple[ExportedRow, ...]], ...]
    held_back: Mapping[str, int]


def exported(
    rows: Iterable[Row], signatures: Mapping[str, ModelSignature], contexts: Mapping[str, Context], rules: ExportPolicy
) -> Export:
    """What `rows`, of one origin's own searches, amount to outside: epochs folded into one row a plan and context.

    Equal rows give equal bits, in whatever order they come.
    """
    held: Counter[str] = Counter()
    outside = {key: coarse(signature) for key, signature in signatures.items()}
    places = {key: _context(context, rules) for key, context in contexts.items()}
    kept, plans = [], {}
    for row in rows:
        place = places.get(row.context)
        reason = _reason_to_stay(row, rules) if place else "the device has no printable name"
        if reason or place is None:
            held[reason] += 1
            continue
        plans[row.plan.key] = row.plan
        # One search has one architecture and context; the names keep rows apart that only coarsening makes alike.
        epoch = f"{row.epoch}|{row.signature}|{row.context}"
        kept.append(replace(row, signature=outside[row.signature].key, context=place.key, epoch=epoch))
    known = {place.key: place for place in places.values() if place}
    found: dict[str, list[ExportedRow]] = {}
    for (signature, plan, context), moments in _folded(kept, rules).items():
        found.setdefault(signature, []).append((plans[plan], known[context], moments))
    by_key = {signature.key: signature for signature in outside.values()}
    enough = tuple((by_key[key], tuple(entries)) for key, entries in sorted(_enough(found, rules, held).items()))
    return Export(rows=enough, held_back=dict(held))


def coarse(signature: ModelSignature) -> ModelSignature:
    """The signature as it may leave: operators from the vocabulary or "other", counts in half-octave buckets."""
    operators: Counter[str] = Counter()
    for name, count in signature.operators.items():
        operators[name if name in OPERATORS else "other"] += count
    return replace(signature, operators=dict(sorted(operators.items()))).coarse()


def _context(context: Context, rules: ExportPolicy) -> Context | None:
    if not _DEVICE.fullmatch(context.device) or not _OPTION.fullmatch(context.dtype):
        return None
    return replace(context, libraries=tuple(pair for pair in context.libraries if pair[0] in rules.libraries))


def _reason_to_stay(row: Row, rules: ExportPolicy) -> str:
    for choice in row.plan.choices:
        name, _, stage = choice.decision.partition("/")
        if name not in rules.decisions or (stage and not _STAGE.fullmatch(stage)):
            return f"decision {choice.decision!r} is not on the list"
        if not _OPTION.fullmatch(choice.option):
            return f"an option of {name!r} has no plain name"
    return "" if row.moments.keys() & rules.metrics else "no metric on the list"


def _folded(rows: list[Row], rules: ExportPolicy) -> dict[tuple[str, str, str], dict[str, Moments]]:
    found: dict[tuple[str, str, str], dict[str, Moments]] = {}
    for metric in sorted(rules.metrics):
        folded = fold(rows, metric)
        for cell, moments in zip(folded.cells, folded.moments.to_list(), strict=True):
            if moments.n >= rules.least_samples:
                found.setdefault((cell.signature, cell.plan, cell.context), {})[metric] = moments
    return found


def _enough(
    found: Mapping[str, list[ExportedRow]], rules: ExportPolicy, held: Counter[str]
) -> dict[str, list[ExportedRow]]:
    enough = {}
    for signature, entries in found.items():
        if len({plan for plan, _, _ in entries}) >= rules.least_plans:
            enough[signature] = sorted(entries, key=lambda entry: (entry[0].key, entry[1].key))
        else:
            held[f"fewer than {rules.least_plans} plans of the architecture"] += len(entries)
    return enough
