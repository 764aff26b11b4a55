"""Milliseconds to merge 10,000 rows of four origins, to keep a result, and to send 10,000 rows; beside dicts.

    python benchmarks/merge.py [--quick] [--json]

`merge_ms`: `merge_origins`, as a search does before it starts: epochs folded, origins weighed by samples, noise and
how far they agree, with an interval. `merge_dict_ms`: the samples of the same rows added up (Chan's formulas) in a dict
of tuples (n, mean, m2, min, max), which weighs nobody. `result_us`: a coordinator merges one result into its row.

`wire_single_kb` and `wire_full_kb`: 10,000 rows of one metric as an envelope, with plans from which receivers compute
the keys, where each has one sample or all moments; `encode_…_ms` and `decode_…_ms` (with every check) are from columns
to bytes and back. The same as a list of dicts in msgpack, with the plans' keys: `wire_dict_kb` and so on.
"""

import argparse
import json
import time
from collections.abc import Callable

import msgpack

from model_opt.federation.envelope import Envelope
from model_opt.federation.merge_origins import merge_origins
from model_opt.federation.recorder import recorded
from model_opt.federation.row import Row
from model_opt.federation.stream import Stream
from model_opt.federation.wire import decode, encode
from model_opt.search.evaluator import Measurement
from model_opt.storage.testing import RESNET18, entries

Entry = tuple[int, float, float, float, float]
GOALS = {"wire_single_kb": 300.0, "wire_full_kb": 600.0}
GOALS |= {f"{way}_{kind}_ms": 1.0 for way in ("encode", "decode") for kind in ("single", "full")}
ORIGINS, ROWS, METRIC = 4, 10_000, "log_speedup"


def told() -> list[Row]:
    """What so many origins have measured of the same plans."""
    shared = [
        (plan, context, {METRIC: moments[METRIC]}) for plan, context, moments in entries(ROWS // ORIGINS, samples=3)
    ]
    streams = (Stream(origin=f"{number:064x}") for number in range(ORIGINS))
    return [row for stream in streams for row in stream.mint(RESNET18, shared).rows]


def add_in_a_dict(rows: list[Row]) -> dict[str, Entry]:
    total: dict[str, Entry] = {}
    for row in rows:
        one, known = row.moments[METRIC], total.get(row.plan.key)
        if known is None:
            total[row.plan.key] = (one.n, one.mean, one.m2, one.min, one.max)
            continue
        count, delta = known[0] + one.n, one.mean - known[1]
        middle = known[1] * (known[0] / count) + one.mean * (one.n / count)
        spread = known[2] + one.m2 + delta * delta * (known[0] * one.n / count)
        total[row.plan.key] = (count, middle, spread, min(one.min, known[3]), max(one.max, known[4]))
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
    repeats = 5 if quick else 51
    rows = told()
    outcome = Measurement(plan=rows[0].plan, samples={METRIC: (1.0, 1.1, 1.2), "log_size_ratio": (0.5,)})
    row = recorded({}, outcome)
    return {
        "merge_ms": median_ms(lambda: merge_origins(rows, metric=METRIC, floor=1e-4), repeats),
        "merge_dict_ms": median_ms(lambda: add_in_a_dict(rows), repeats),
        "result_us": 1e3 * median_ms(lambda: recorded(row, outcome), 20 * repeats),
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
