"""Milliseconds to merge 100,000 rows of moments into 100,000, and to send 10,000 rows, beside doing so with dicts.

    python benchmarks/merge.py [--quick] [--json]

`merge_ms`: all keys are the same, as when a delta is added to what is known; `merge_half_ms`: half of them are, and the
rest are new. Keys are sorted. Medians; dicts hold tuples (n, mean, m2, min, max) under the same integers.

`wire_single_kb` and `wire_full_kb`: 10,000 rows of one metric as an envelope, with plans from which receivers compute
the keys, where each has one sample or all moments; `encode_…_ms` and `decode_…_ms` (with every check) are from columns
to bytes and back. The same as a list of dicts in msgpack, with the plans' keys: `wire_dict_kb` and so on.
"""

import argparse
import json
import time
from collections.abc import Callable

import msgpack
import numpy as np

from model_opt.federation.envelope import Envelope
from model_opt.federation.keyed import KeyedColumns, add
from model_opt.federation.moments import MomentColumns
from model_opt.federation.stream import Stream
from model_opt.federation.wire import decode, encode
from model_opt.storage.testing import RESNET18, entries

Entry = tuple[int, float, float, float, float]
GOALS = {"merge_ms": 4.0, "merge_half_ms": 4.0, "wire_single_kb": 300.0, "wire_full_kb": 600.0}
GOALS |= {f"{way}_{kind}_ms": 1.0 for way in ("encode", "decode") for kind in ("single", "full")}


def made(keys: np.ndarray, seed: int) -> KeyedColumns:
    source = np.random.default_rng(seed)
    mean = source.normal(10, 1, len(keys))
    low, high = mean - 0.1, mean + 0.1
    n, m2 = source.integers(1, 30, len(keys)), source.random(len(keys))
    return KeyedColumns(keys=keys, moments=MomentColumns(n=n, mean=mean, m2=m2, min=low, max=high))


def as_dict(rows: KeyedColumns) -> dict[int, Entry]:
    moments = rows.moments
    columns = (moments.n, moments.mean, moments.m2, moments.min, moments.max)
    entries = zip(*(column.tolist() for column in columns), strict=True)
    return dict(zip(rows.keys.tolist(), entries, strict=True))


def add_dicts(a: dict[int, Entry], b: dict[int, Entry]) -> dict[int, Entry]:
    total = dict(a)
    for key, (n, mean, m2, low, high) in b.items():
        known = total.get(key)
        if known is None:
            total[key] = (n, mean, m2, low, high)
            continue
        count, delta = known[0] + n, mean - known[1]
        middle = known[1] * (known[0] / count) + mean * (n / count)
        spread = known[2] + m2 + delta * delta * (known[0] * n / count)
        total[key] = (count, middle, spread, min(low, known[3]), max(high, known[4]))
    return total


def median_ms(action: Callable[[], object], repeats: int) -> float:
    action()
    spent = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        spent.append(time.perf_counter() - began)
    return sorted(spent)[repeats // 2] * 1e3


def envelope(samples: int, rows: int = 10_000) -> Envelope:
    metric = "log_speedup"
    one = [(plan, context, {metric: moments[metric]}) for plan, context, moments in entries(rows, samples)]
    return Stream(origin="a" * 64).mint(RESNET18, one)


def wire(repeats: int) -> dict[str, float]:
    found = {}
    for kind, samples in (("single", 1), ("full", 5)):
        sent = envelope(samples)
        data = encode(sent)
        found[f"wire_{kind}_kb"] = len(data) / 1e3
        found[f"encode_{kind}_ms"] = median_ms(lambda sent=sent: encode(sent), repeats)
        found[f"decode_{kind}_ms"] = median_ms(lambda data=data: decode(data), repeats)
    rows = [
        {"plan": row.plan.key, "context": row.context, "metric": "log_speedup", **vars(row.moments["log_speedup"])}
        for row in envelope(5).rows
    ]
    packed = msgpack.packb(rows)
    found["wire_dict_kb"] = len(packed) / 1e3
    found["encode_dict_ms"] = median_ms(lambda: msgpack.packb(rows), repeats)
    found["decode_dict_ms"] = median_ms(lambda: msgpack.unpackb(packed), repeats)
    return found


def run(quick: bool) -> dict[str, float]:
    rows, repeats = 100_000, 5 if quick else 51
    keys = np.unique(np.random.default_rng(0).integers(0, 2**63, 2 * rows, dtype=np.uint64))
    known, same = made(keys[:rows], 1), made(keys[:rows].copy(), 2)
    half = made(np.sort(np.concatenate([keys[: rows // 2], keys[-rows // 2 :]])), 3)
    dicts = [as_dict(one) for one in (known, same, half)]
    return {
        "merge_ms": median_ms(lambda: add(known, same), repeats),
        "merge_half_ms": median_ms(lambda: add(known, half), repeats),
        "merge_dict_ms": median_ms(lambda: add_dicts(dicts[0], dicts[1]), max(3, repeats // 10)),
        "merge_half_dict_ms": median_ms(lambda: add_dicts(dicts[0], dicts[2]), max(3, repeats // 10)),
    } | wire(repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="five repeats instead of 51")
    parser.add_argument("--json", action="store_true", help="figures as JSON")
    arguments = parser.parse_args()
    results = run(arguments.quick)
    if arguments.json:
        print(json.dumps({key: round(value, 3) for key, value in results.items()}, indent=1))
        return
    for key, value in results.items():
        print(f"{key:20} {value:8.2f}{f'   goal {GOALS[key]:g}' if key in GOALS else ''}")


if __name__ == "__main__":
    main()
