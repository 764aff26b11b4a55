"""The body of an envelope: signature, contexts and rows as a description (`meta`) and arrays end to end (`columns`)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_opt.errors import WireError
from model_opt.federation.block import DecisionTable, MetricColumns, RowBlock
from model_opt.federation.envelope import Envelope
from model_opt.federation.moments import MomentColumns
from model_opt.search.context import Context
from model_opt.search.model_signature import OPERATORS, Family, ModelSignature, Stage

_DTYPES = {"u1": "<u1", "u2": "<u2", "u4": "<u4", "u8": "<u8"}
_LARGEST_NAME = 200


def pack(envelope: Envelope) -> tuple[dict[str, Any], bytes]:
    """`meta` and `columns` of an envelope."""
    block = envelope.block
    arrays: list[tuple[str, NDArray[Any]]] = [(_narrowest(block.codes), block.codes)]
    several = len(envelope.contexts) > 1
    if several:
        arrays.append((_narrowest(block.contexts), block.contexts))
    metrics = []
    for name, columns in sorted(block.metrics.items()):
        described, more = _pack_metric(columns)
        metrics.append([name, *described])
        arrays += more
    meta = {
        "signature": signature_fields(envelope.signature),
        "contexts": [context_fields(context) for context in envelope.contexts],
        "decisions": [[table.name, [list(option) for option in table.options]] for table in block.decisions],
        "rows": len(block),
        "codes": arrays[0][0],
        "context_of": arrays[1][0] if several else "",
        "metrics": metrics,
    }
    return meta, b"".join(array.astype(_DTYPES.get(kind, kind), copy=False).tobytes() for kind, array in arrays)


def _pack_metric(columns: MetricColumns) -> tuple[list[Any], list[tuple[str, NDArray[Any]]]]:
    """[rows that have it, type of their numbers, type of n, whether m2, min and max are there], and the arrays."""
    moments = columns.moments
    arrays: list[tuple[str, NDArray[Any]]] = []
    index = ""
    if columns.rows is not None:
        index = _narrowest(columns.rows)
        arrays.append((index, columns.rows))
    single = bool((moments.n == 1).all() and not moments.m2.any())
    single = single and bool((moments.min == moments.mean).all() and (moments.max == moments.mean).all())
    if single:
        return [len(moments), index, "", False], [*arrays, ("<f8", moments.mean)]
    counts = _narrowest(moments.n)
    four = (moments.mean, moments.m2, moments.min, moments.max)
    return [len(moments), index, counts, True], [*arrays, (counts, moments.n), *(("<f8", array) for array in four)]


def _narrowest(array: NDArray[Any]) -> str:
    top = int(array.max(initial=0))
    return next(name for name, bits in (("u1", 8), ("u2", 16), ("u4", 32), ("u8", 64)) if top < 2**bits)


def unpack(
    meta: Mapping[str, Any], columns: bytes | memoryview, *, max_rows: int, max_metrics: int
) -> tuple[ModelSignature, tuple[Context, ...], RowBlock]:
    """Signature, contexts and rows; raises `WireError`, `KeyError`, `TypeError` or `ValueError` for wrong ones."""
    contexts = tuple(context_of(fields) for fields in meta["contexts"])
    rows = integer(meta["rows"], 1, max_rows)
    if len({context.key for context in contexts}) != len(contexts) or not 1 <= len(contexts) <= 2**16:
        raise WireError("the table of contexts is empty, too long, or names one twice")
    if len(meta["metrics"]) > max_metrics:
        raise WireError(f"{len(meta['metrics'])} metrics are more than {max_metrics}")
    decisions = tuple(_decision(fields) for fields in meta["decisions"])
    reader = _Reader(columns)
    codes: NDArray[Any] = reader.integers(meta["codes"], rows * len(decisions)).reshape(rows, len(decisions))
    numbers = reader.integers(meta["context_of"], rows) if len(contexts) > 1 else np.zeros(rows, dtype=np.uint16)
    metrics = {text(fields[0]): _metric(fields, reader, rows) for fields in meta["metrics"]}
    reader.finish()
    block = RowBlock(
        decisions=decisions,
        codes=codes if codes.itemsize == 1 else codes.astype(np.uint16, copy=False),
        contexts=numbers.astype(np.uint16, copy=False),
        metrics=metrics,
    )
    _check_block(block, codes, numbers, len(contexts), len(meta["metrics"]))
    return signature_of(meta["signature"]), contexts, block


def _decision(fields: Sequence[Any]) -> DecisionTable:
    options = tuple((text(name), integer(version, 0, 2**31)) for name, version in fields[1])
    return DecisionTable(name=text(fields[0]), options=options)


def _check_block(block: RowBlock, codes: NDArray[Any], numbers: NDArray[Any], contexts: int, metrics: int) -> None:
    names = [table.name for table in block.decisions]
    if names != sorted(set(names)) or len(block.metrics) != metrics:
        raise WireError("decisions are unsorted, or a decision or metric is named twice")
    if any(len(set(table.options)) != len(table.options) for table in block.decisions):
        raise WireError("an option is named twice")
    # Column by column: along the first axis of a matrix that is long and narrow, numpy is slow.
    beyond = any(int(column.max()) > len(table.options) for column, table in zip(codes.T, block.decisions, strict=True))
    if beyond or int(numbers.max()) >= contexts:
        raise WireError("a row names an option or a context that is not in the table")
    if all(columns.rows is not None for columns in block.metrics.values()):
        measured = np.zeros(len(block), dtype=np.bool_)
        for columns in block.metrics.values():
            measured[columns.rows] = True
        if not measured.all():
            raise WireError("a row has no metric")
    if block.repeats():
        raise WireError("a plan occurs twice in one context")


class _Reader:
    """Takes arrays from the front of `columns`; they are read-only views of it."""

    def __init__(self, columns: bytes | memoryview) -> None:
        self.columns = columns
        self.offset = 0

    def integers(self, kind: object, count: int) -> NDArray[Any]:
        if kind not in _DTYPES:
            raise WireError(f"unknown type of column {kind!r}")
        return self._take(_DTYPES[str(kind)], count)

    def floats(self, count: int) -> NDArray[np.float64]:
        return self._take("<f8", count)

    def _take(self, dtype: str, count: int) -> NDArray[Any]:
        size = count * np.dtype(dtype).itemsize
        if size > len(self.columns) - self.offset:
            raise WireError("a column is longer than the body")
        array = np.frombuffer(self.columns, dtype=dtype, count=count, offset=self.offset)
        self.offset += size
        return array

    def finish(self) -> None:
        if self.offset != len(self.columns):
            raise WireError("the body is longer than its columns")


def _metric(fields: Sequence[Any], reader: _Reader, rows: int) -> MetricColumns:
    _, length, index, counts, full = fields
    count = integer(length, 1, rows)
    present = None
    if index:
        present = reader.integers(index, count).astype(np.uint32, copy=False)
        if int(present[-1]) >= rows or (np.diff(present.astype(np.int64)) <= 0).any():
            raise WireError("the rows of a metric are unsorted or not there")
    elif count != rows:
        raise WireError("a metric's column is shorter than the rows")
    # What is the same for all takes no memory: a small record may claim many rows.
    n = reader.integers(counts, count) if full else np.broadcast_to(np.int64(1), count)
    if int(n.max()) > 2**53:
        raise WireError("a count is larger than 2**53")
    mean = reader.floats(count)
    m2, low, high = (
        (reader.floats(count) for _ in range(3)) if full else (np.broadcast_to(np.float64(0), count), mean, mean)
    )
    moments = MomentColumns(n=n.astype(np.int64, copy=False), mean=mean, m2=m2, min=low, max=high)
    fault = moments.faults()
    if fault:
        raise WireError(f"metric {fields[0]!r}: {fault}")
    return MetricColumns(rows=present, moments=moments)


def signature_fields(signature: ModelSignature) -> list[Any]:
    """A signature as plain values, for the wire and for stores that keep documents."""
    operators = sorted((name, int(count)) for name, count in signature.operators.items())
    return [
        str(signature.family),
        signature.parameters,
        signature.layers,
        [list(pair) for pair in operators],
        [[stage.width, stage.layers, float(stage.share)] for stage in signature.stages],
    ]


def signature_of(fields: Sequence[Any]) -> ModelSignature:
    """The signature of plain values; raises `WireError` or `ValueError` where it is none."""
    family, parameters, layers, operators, stages = fields
    counts = {name: integer(count, 0, 2**40) for name, count in operators}
    if not set(counts) <= set(OPERATORS) or len(counts) != len(operators):
        raise WireError("an operator is not in the vocabulary, or named twice")
    return ModelSignature(
        family=Family(family),
        parameters=integer(parameters, 0, 2**53),
        layers=integer(layers, 0, 2**31),
        operators=counts,
        stages=tuple(
            Stage(width=integer(width, 0, 2**31), layers=integer(depth, 0, 2**31), share=_share(share))
            for width, depth, share in stages
        ),
    )


def context_fields(context: Context) -> list[Any]:
    """A context as plain values."""
    libraries = [list(pair) for pair in context.libraries]
    shapes = [list(shape) for shape in context.input_shapes]
    return [context.device, libraries, context.dtype, context.threads, context.batch, shapes]


def context_of(fields: Sequence[Any]) -> Context:
    """The context of plain values; raises `WireError` or `ValueError` where it is none."""
    device, libraries, dtype, threads, batch, shapes = fields
    return Context(
        device=text(device, 1024),
        libraries=tuple((text(name), text(version)) for name, version in libraries),
        dtype=text(dtype),
        threads=integer(threads, 0, 2**20),
        batch=integer(batch, 0, 2**31),
        input_shapes=tuple(tuple(integer(size, 0, 2**31) for size in shape) for shape in shapes),
    )


def integer(value: object, least: int, most: int) -> int:
    """`value` if it is an integer within `least` and `most`; raises `WireError`."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise WireError(f"{value!r} is not an integer within {least} and {most}")
    return value


def text(value: object, longest: int = _LARGEST_NAME) -> str:
    """`value` if it is a string of 1 to `longest` characters; raises `WireError`."""
    if not isinstance(value, str) or not 1 <= len(value) <= longest:
        raise WireError(f"not a text of 1 to {longest} characters: {str(value)[:80]!r}")
    return value


def _share(value: object) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= 1.0001:
        raise WireError(f"{value!r} is not a share")
    return float(value)
