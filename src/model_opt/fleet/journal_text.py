"""Leases, results and rows as JSON text for the coordinator's file. Floats come back to the bit."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from model_opt.federation.moments import Moments
from model_opt.fleet.leases import Holder, Lease, LeaseState
from model_opt.fleet.messages import LeaseResult, MergedRow
from model_opt.search.evaluator import Failure, Measurement, Outcome, Purpose, Reason
from model_opt.search.plan import Choice, Plan
from model_opt.search.trial import Trial


def lease_text(lease: Lease) -> str:
    """A lease; when it expires is not kept."""
    fields = {"plan": _plan(lease.plan), "purpose": lease.purpose, "context": lease.context, "state": lease.state}
    holder = {"worker": lease.holder.worker, "incarnation": lease.holder.incarnation}
    return _dump(fields | holder | {"lease_id": lease.lease_id, "attempt": lease.attempt, "lost": lease.lost})


def read_lease(text: str) -> Lease:
    """The lease that `lease_text` wrote."""
    fields = json.loads(text)
    return Lease(
        lease_id=fields["lease_id"],
        plan=_read_plan(fields["plan"]),
        purpose=Purpose(fields["purpose"]),
        context=fields["context"],
        state=LeaseState(fields["state"]),
        attempt=fields["attempt"],
        holder=Holder(worker=fields["worker"], incarnation=fields["incarnation"]),
        expires_s=0.0,
        lost=fields.get("lost", 0),
    )


def result_text(result: LeaseResult) -> str:
    """A result with its place."""
    trial = result.trial
    fields = {name: getattr(trial, name) for name in ("purpose", "context", "worker", "busy_s", "at_s")}
    fields |= {"lease_id": result.lease_id, "attempt": result.attempt, "position": result.position}
    return _dump(fields | {"outcome": _outcome(result.outcome)})


def read_result(text: str) -> LeaseResult:
    """The result that `result_text` wrote."""
    fields = json.loads(text)
    outcome = _read_outcome(fields["outcome"])
    trial = Trial(
        plan=outcome.plan,
        purpose=Purpose(fields["purpose"]),
        outcome=outcome,
        at_s=fields["at_s"],
        busy_s=fields["busy_s"],
        context=fields["context"],
        worker=fields["worker"],
    )
    return LeaseResult(lease_id=fields["lease_id"], attempt=fields["attempt"], trial=trial, position=fields["position"])


def row_text(row: MergedRow) -> str:
    """A row."""
    moments = {metric: asdict(value) for metric, value in row.moments.items()}
    return _dump({"plan": _plan(row.plan), "context": row.context, "moments": moments})


def read_row(text: str) -> MergedRow:
    """The row that `row_text` wrote."""
    fields = json.loads(text)
    moments = {metric: Moments(**value) for metric, value in fields["moments"].items()}
    return MergedRow(plan=_read_plan(fields["plan"]), context=fields["context"], moments=moments)


def _plan(plan: Plan) -> list[list[object]]:
    return [[choice.decision, choice.option, choice.version] for choice in plan.choices]


def _read_plan(choices: list[list[Any]]) -> Plan:
    return Plan(tuple(Choice(decision=name, option=option, version=version) for name, option, version in choices))


def _outcome(outcome: Outcome) -> Mapping[str, object]:
    shared = {"plan": _plan(outcome.plan), "seconds": dict(outcome.seconds)}
    if isinstance(outcome, Failure):
        blamed = {"blamed": sorted(outcome.blamed)} if outcome.blamed else {}
        return shared | {"reason": outcome.reason, "message": outcome.message} | blamed
    samples = {metric: [float(value) for value in values] for metric, values in outcome.samples.items()}
    told = {"samples": samples, "notes": list(outcome.notes), "partial": outcome.partial}
    return shared | told | {"disturbed": sorted(outcome.disturbed)}


def _read_outcome(fields: Mapping[str, Any]) -> Outcome:
    plan, seconds = _read_plan(fields["plan"]), fields["seconds"]
    if "reason" in fields:
        blamed = frozenset((decision, option) for decision, option in fields.get("blamed", ()))
        reason, message = Reason(fields["reason"]), fields["message"]
        return Failure(plan=plan, reason=reason, message=message, seconds=seconds, blamed=blamed)
    samples = {metric: tuple(values) for metric, values in fields["samples"].items()}
    return Measurement(
        plan=plan,
        samples=samples,
        seconds=seconds,
        notes=tuple(fields["notes"]),
        partial=bool(fields.get("partial", False)),
        disturbed=frozenset(fields.get("disturbed", ())),
    )


def _dump(fields: Mapping[str, object]) -> str:
    return json.dumps(fields, separators=(",", ":"))
