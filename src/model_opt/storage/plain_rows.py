"""An envelope's rows as plain values, column by column: what the stores of documents and nodes are written from."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from model_opt.federation.block import RowBlock
from model_opt.federation.envelope import Envelope

PlainChoice = tuple[str, str, int]
"""Decision, option, version."""
PlainMoments = tuple[int, float, float, float, float]
"""n, mean, m2, min, max."""


class PlainRow(NamedTuple):
    """One row; `plan` and `context` are keys, `choices` are sorted by decision."""

    plan: str
    choices: tuple[PlainChoice, ...]
    context: str
    moments: dict[str, PlainMoments]


def plain_rows(envelope: Envelope) -> Iterator[PlainRow]:
    """The rows of an envelope in their order: as `Envelope.rows`, without a value object for each number."""
    block = envelope.block
    contexts = [context.key for context in envelope.contexts]
    tables = [[None, *((table.name, *option) for option in table.options)] for table in block.decisions]
    columns = (block.plan_keys, block.codes.tolist(), block.contexts.tolist(), _moments(block))
    for key, codes, context, moments in zip(*columns, strict=True):
        choices = tuple(table[code] for table, code in zip(tables, codes, strict=True) if code)
        yield PlainRow(key.hex(), choices, contexts[context], moments)


def in_batches(envelopes: Iterable[Envelope], rows: int) -> Iterator[list[Envelope]]:
    """The envelopes in their order, small ones together: each batch but the last has at least `rows` rows."""
    batch: list[Envelope] = []
    for envelope in envelopes:
        batch.append(envelope)
        if sum(len(one.block) for one in batch) >= rows:
            yield batch
            batch = []
    if batch:
        yield batch


def plan_text(choices: tuple[PlainChoice, ...]) -> str:
    """The plan as `str(plan)` writes it."""
    return ", ".join(f"{decision}={option}" for decision, option, _ in choices) or "leave alone"


def _moments(block: RowBlock) -> list[dict[str, PlainMoments]]:
    found: list[dict[str, PlainMoments]] = [{} for _ in range(len(block))]
    for name, column in block.metrics.items():
        numbers = range(len(block)) if column.rows is None else column.rows.tolist()
        m = column.moments
        values = zip(m.n.tolist(), m.mean.tolist(), m.m2.tolist(), m.min.tolist(), m.max.tolist(), strict=True)
        for number, five in zip(numbers, values, strict=True):
            found[number][name] = five
    return found
