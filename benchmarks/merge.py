"""Milliseconds to merge 100,000 rows of moments into 100,000, beside merging them as dicts.

    python benchmarks/merge.py [--quick] [--json]

`merge_ms`: all keys are the same, as when a delta is added to what is known; `merge_half_ms`: half of them are, and the
rest are new. Keys are sorted. Medians; dicts hold tuples (n, mean, m2, min, max) under the same integers.
"""

import argparse
import json
import time
from collections.abc import Callable

import numpy as np

from model_opt.federation.keyed import KeyedColumns, add
from model_opt.federation.moments import MomentColumns

Entry = tuple[int, float, float, float, float]
GOAL_MS = 4.0


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
    }


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
        print(f"{key:20} {value:8.2f}{f'   goal {GOAL_MS}' if not key.endswith('dict_ms') else ''}")


if __name__ == "__main__":
    main()
