"""Signatures, contexts, plans and rows as the properties of Neo4j's nodes, and back."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from model_opt.federation.moments import Moments
from model_opt.federation.row import Row
from model_opt.federation.wire_rows import context_fields, context_of, signature_fields, signature_of
from model_opt.search.context import Context
from model_opt.search.plan import Choice, Plan
from model_opt.search.signature import Signature

_FIELDS = ("n", "mean", "m2", "min", "max")
EMPTY = Plan()


def signature_node(federation: str, signature: Signature) -> dict[str, Any]:
    """The properties of a `:Signature`; `value` is all of it, as JSON."""
    return {
        "key": f"{federation}|{signature.key}",
        "federation": federation,
        "signature": signature.key,
        "family": str(signature.family),
        "parameters": signature.parameters,
        "layers": signature.layers,
        "value": json.dumps(signature_fields(signature)),
    }


def signature_value(value: str) -> Signature:
    """The signature of a node's `value`."""
    return signature_of(json.loads(value))


def context_node(federation: str, context: Context) -> dict[str, Any]:
    """The properties of a `:Context`; `value` is all of it, as JSON."""
    return {
        "key": f"{federation}|{context.key}",
        "federation": federation,
        "context": context.key,
        "device": context.device,
        "dtype": context.dtype,
        "threads": context.threads,
        "batch": context.batch,
        "value": json.dumps(context_fields(context)),
    }


def context_value(value: str) -> Context:
    """The context of a node's `value`."""
    return context_of(json.loads(value))


def graph_of(scope: str, plans: Iterable[Plan]) -> tuple[list[list[dict[str, Any]]], list[dict[str, Any]]]:
    """The states on the way to `plans`, one list for each depth from 1 on, and the plans themselves.

    `scope` ("federation|signature") begins every key. A state is keyed like the plan of its choices, so the root's
    key is that of the plan that leaves everything alone.
    """
    levels: list[dict[str, dict[str, Any]]] = []
    nodes = []
    for plan in plans:
        parent = f"{scope}|{EMPTY.key}"
        for depth, choice in enumerate(plan.choices):
            key = f"{scope}|{Plan(plan.choices[: depth + 1]).key}"
            if depth == len(levels):
                levels.append({})
            levels[depth].setdefault(
                key, {"key": key, "parent": parent, "decision": choice.decision, "option": choice.option}
            )
            parent = key
        nodes.append(
            {
                "key": parent,
                "plan": plan.key,
                "text": str(plan),
                "techniques": [f"{choice.decision}={choice.option}" for choice in plan.choices],
                "choices": json.dumps([[c.decision, c.option, c.version] for c in plan.choices]),
            }
        )
    return [list(level.values()) for level in levels], nodes


def measurement(scope: str, row: Row) -> dict[str, Any]:
    """The parameters that write one row: key, plan, sequence, and the node's properties."""
    key = "|".join(row.key)
    values: dict[str, Any] = {
        "key": key,
        "scope": scope,
        "context": row.context,
        "origin": row.origin,
        "epoch": row.epoch,
        "sequence": row.sequence,
        "metrics": list(row.moments),
    }
    for name, moments in row.moments.items():
        for field in _FIELDS:
            values[f"{name}_{field}"] = getattr(moments, field)
    return {"key": key, "plan": f"{scope}|{row.plan.key}", "sequence": row.sequence, "values": values}


def row_value(federation: str, node: Mapping[str, Any], plan: Plan) -> Row:
    """The row of a `:Measurement`."""
    return Row(
        federation=federation,
        signature=node["scope"].rpartition("|")[2],
        plan=plan,
        context=node["context"],
        origin=node["origin"],
        epoch=node["epoch"],
        sequence=node["sequence"],
        moments={name: Moments(**{field: node[f"{name}_{field}"] for field in _FIELDS}) for name in node["metrics"]},
    )


class PlanReader:
    """Plans of a node's `choices`; each text is parsed once."""

    def __init__(self) -> None:
        self._known: dict[str, Plan] = {}

    def __call__(self, text: str) -> Plan:
        """The plan of a node's `choices`."""
        if text not in self._known:
            choices = (
                Choice(decision=name, option=option, version=version) for name, option, version in json.loads(text)
            )
            self._known[text] = Plan(tuple(choices))
        return self._known[text]
