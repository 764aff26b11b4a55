"""What a search measured that its store was never told, where the two went apart: the state folder was brought back
from a backup, or copied, and the store has later envelopes of the same epoch, with other results."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping

from model_opt.federation.encoded_record import EncodedRecord
from model_opt.federation.join import latest_rows
from model_opt.federation.known import InspectableStore
from model_opt.federation.recorder import recorded
from model_opt.fleet.merged_rows import merged
from model_opt.fleet.messages import LeaseResult, MergedRow, RowId

Results = Callable[[int], list[tuple[int, LeaseResult]]]
"""The numbered results that were kept after the one with this number, in their order."""
SampleCounts = Counter[str]
"""Metric → how many samples."""


def counts_in(store: InspectableStore, origin: str, epochs: Collection[str]) -> dict[RowId, SampleCounts]:
    """How many samples these epochs told the store, row by row, withdrawn or not."""
    sent = (EncodedRecord.open(data) for _, data in store.envelopes())
    ours = (one for one in sent if one.head.origin == origin and one.head.fields.get("epoch") in epochs)
    counts: dict[RowId, SampleCounts] = {}
    for row in latest_rows(row for one in ours for envelope in one.envelopes for row in envelope.rows).values():
        told = {metric: moments.n for metric, moments in row.moments.items()}
        counts.setdefault((row.plan.key, row.context), Counter()).update(told)
    return counts


def told(
    results: Iterable[LeaseResult], counts: Mapping[RowId, SampleCounts], whole_only: Collection[str]
) -> dict[RowId, int]:
    """How many of the first `results` of each row the store has: as many as `counts` has samples for."""
    left = {row: Counter(known) for row, known in counts.items()}
    found: Counter[RowId] = Counter()
    for result in results:
        row, measured = result.row_id, result.trial.measurement
        if measured is None or row not in left:
            continue
        new = {name: one.n for name, one in recorded({}, measured, whole_only).items() if name in left[row]}
        if all(n <= left[row][name] for name, n in new.items()):
            left[row].subtract(new)
            found[row] += 1
        else:
            del left[row]  # nor any later one
    return dict(found)


class Untold:
    """The rows of a new epoch: of each, the samples of all results but the first so many that were told."""

    def __init__(self, results: Results, told: Mapping[RowId, int], whole_only: Collection[str]) -> None:
        self._results, self._left, self._whole_only = results, Counter(told), whole_only
        self._read = 0
        self._rows: dict[RowId, MergedRow] = {}

    def changed(self) -> list[MergedRow]:
        """The rows that changed since the last call (at first: all)."""
        changed: dict[RowId, MergedRow] = {}
        for number, result in self._results(self._read):
            self._read = number
            if result.trial.measurement is not None and self._left[result.row_id]:
                self._left[result.row_id] -= 1
                continue
            row = merged(self._rows, result, self._whole_only)
            if row is not None:
                self._rows[row.row_id] = changed[row.row_id] = row
        return list(changed.values())
