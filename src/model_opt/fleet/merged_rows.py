"""Results added up to rows: what a coordinator does with each as it comes, and whoever reads them again from disk."""

from collections.abc import Collection, Mapping

from model_opt.federation.recorder import recorded
from model_opt.fleet.messages import LeaseResult, MergedRow, RowId


def merged(rows: Mapping[RowId, MergedRow], result: LeaseResult, whole_only: Collection[str]) -> MergedRow | None:
    """The row of `result` with its samples beside those that `rows` has of it; None where nothing was measured."""
    measured = result.trial.measurement
    if measured is None:
        return None
    old = rows[result.row_id].moments if result.row_id in rows else {}
    moments = recorded(old, measured, whole_only)
    return MergedRow(plan=result.trial.plan, context=result.trial.context, moments=moments)
