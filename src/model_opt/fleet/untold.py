"""What a search measured that its store was never told, where the two went apart: the state folder was brought back
from a backup, or copied, and the store has later envelopes of the same epoch, with other results."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping

from model_opt.federation.moments import Moments
from model_opt.federation.recorder import recorded
from model_opt.fleet.messages import LeaseResult, MergedRow, RowId

Results = Callable[[int], list[tuple[int, LeaseResult]]]
"""The numbered results that were kept after the one with this number, in their order."""


def told(
    results: Iterable[LeaseResult], had: Mapping[RowId, Mapping[str, Moments]], whole_only: Collection[str]
) -> dict[RowId, int]:
    """How many of the first `results` of each row are in it as the store has it: as many as do not make more samples
    of some metric than are there."""
    rows: dict[RowId, Mapping[str, Moments]] = {}
    counts: Counter[RowId] = Counter()
    beyond: set[RowId] = set()
    for result in results:
        row, measured = (result.trial.plan.key, result.trial.context), result.trial.measurement
        if measured is None or row in beyond or row not in had:
            continue
        rows[row] = recorded(rows.get(row, {}), measured, whole_only)
        if all(rows[row][metric].n <= one.n for metric, one in had[row].items() if metric in rows[row]):
            counts[row] += 1
        else:
            beyond.add(row)
    return dict(counts)


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
            plan, context, measured = result.trial.plan, result.trial.context, result.trial.measurement
            row = (plan.key, context)
            if measured is None:
                continue
            if self._left[row]:
                self._left[row] -= 1
                continue
            old = self._rows[row].moments if row in self._rows else {}
            made = MergedRow(plan=plan, context=context, moments=recorded(old, measured, self._whole_only))
            self._rows[row] = changed[row] = made
        return list(changed.values())
