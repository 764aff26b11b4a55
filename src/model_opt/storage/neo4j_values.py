"""Signatures, contexts, plans and rows as the properties of Neo4j's nodes, and back."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from model_opt.federation.envelope import Envelope
from model_opt.federation.moments import Moments
from model_opt.federation.row import Row
from model_opt.federation.wire_rows import context_fields, context_of, signature_fields, signature_of
from model_opt.search.context import Context
from model_opt.search.model_signature import ModelSignature
from model_opt.search.plan import Choice, Plan
from model_opt.storage.plain_rows import PlainChoice, plain_rows, plan_text


def signature_node(federation: str, signature: ModelSignature) -> dict[str, Any]:
    """The properties of a `:ModelSignature`; `value` is all of it, as JSON."""
    return {
        "key": f"{federation}|{signature.key}",
        "federation": federation,
        "signature": signature.key,
        "family": str(signature.family),
        "parameters": signature.parameters,
        "layers": signature.layers,
        "value": json.dumps(signature_fields(signature)),
    }


def signature_value(value: str) -> ModelSignature:
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


def root_key(scope: str) -> str:
    """The key of a signature's root state; `scope` is the key of the signature ("federation|signature")."""
    return str(_digest(scope).hexdigest())


@dataclass(frozen=True, kw_only=True)
class GraphRow:
    """What writes one row: the key of its plan's node, the choices, and the properties of its `:Measurement`."""

    plan: str
    choices: tuple[PlainChoice, ...]
    plan_key: str
    values: dict[str, Any]

    @property
    def parameters(self) -> dict[str, Any]:
        """As the statements want it."""
        return {"plan": self.plan, "values": self.values}


def graph_rows(scope: str, envelope: Envelope) -> list[GraphRow]:
    """The rows of an envelope.

    Keys of nodes that are many are digests (32 hexadecimal digits): short ones fit into Neo4j's property records.
    """
    segments: dict[PlainChoice, bytes] = {}
    fixed = {"origin": envelope.origin, "epoch": envelope.epoch, "sequence": envelope.sequence}
    start = _digest(scope)
    rows = []
    for row in plain_rows(envelope):
        node = start.copy()
        node.update(b"".join([segments.get(choice) or _segment(choice, segments) for choice in row.choices]))
        text = "|".join((scope, row.plan, row.context, envelope.origin, envelope.epoch))
        values = {"key": _digest(text).hexdigest(), "context": row.context, **fixed}
        for name, (n, mean, m2, low, high) in row.moments.items():
            values[f"{name}_n"], values[f"{name}_mean"], values[f"{name}_m2"] = n, mean, m2
            values[f"{name}_min"], values[f"{name}_max"] = low, high
        rows.append(GraphRow(plan=node.hexdigest(), choices=row.choices, plan_key=row.plan, values=values))
    return rows


def states_of(scope: str, plans: Iterable[tuple[PlainChoice, ...]]) -> list[dict[str, dict[str, Any]]]:
    """The states on the way to plans, by key, one table for each depth from 1 on.

    A state is keyed like a plan that ends at it: by a digest of scope and choices.
    """
    levels: list[dict[str, dict[str, Any]]] = []
    segments: dict[PlainChoice, bytes] = {}
    for choices in plans:
        digest = _digest(scope)
        parent = digest.hexdigest()
        for depth, choice in enumerate(choices):
            digest.update(segments.get(choice) or _segment(choice, segments))
            key = digest.hexdigest()
            if depth == len(levels):
                levels.append({})
            if key not in levels[depth]:
                levels[depth][key] = {"key": key, "parent": parent, "decision": choice[0], "option": choice[1]}
            parent = key
    return levels


def plan_node(row: GraphRow) -> dict[str, Any]:
    """The properties of a state that is a `:Plan`."""
    return {
        "key": row.plan,
        "plan": row.plan_key,
        "text": plan_text(row.choices),
        "techniques": [f"{decision}={option}" for decision, option, _ in row.choices],
        "choices": json.dumps(row.choices),
    }


def _digest(text: str) -> Any:
    return hashlib.blake2b(text.encode(), digest_size=16)


def _segment(choice: PlainChoice, known: dict[PlainChoice, bytes]) -> bytes:
    parts = (str(part).encode() for part in choice)
    known[choice] = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return known[choice]


def row_value(federation: str, signature: str, node: Mapping[str, Any], plan: Plan) -> Row:
    """The row of a `:Measurement`. Nothing but a metric has a property that ends in `_n`."""
    names = [name[:-2] for name in node if name.endswith("_n")]
    return Row(
        federation=federation,
        signature=signature,
        plan=plan,
        context=node["context"],
        origin=node["origin"],
        epoch=node["epoch"],
        sequence=node["sequence"],
        moments={
            name: Moments(
                n=node[f"{name}_n"],
                mean=node[f"{name}_mean"],
                m2=node[f"{name}_m2"],
                min=node[f"{name}_min"],
                max=node[f"{name}_max"],
            )
            for name in names
        },
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
