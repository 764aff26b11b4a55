"""Rows a second that each store writes, updates and reads, and how fast the nearest signature is found.

    python benchmarks/stores.py [--quick] [--json] [--only sqlite,json,redis,mongodb,neo4j,chroma]

Starts the servers itself. Writing is one `append` of bytes for every 10,000 rows (one metric, plans of about five
choices): decoding, checking, the plans' keys, the records and the rows, durably. Beside the rate by the clock stands
the time that client and server computed, which a busy machine hardly changes.
"""

import argparse
import contextlib
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from model_opt.federation.moments import Moments
from model_opt.federation.stream import Stream
from model_opt.federation.wire import encode
from model_opt.search.plan import Choice, Plan
from model_opt.storage.chroma import ChromaIndex
from model_opt.storage.neighbours import Neighbours
from model_opt.storage.open import open_store
from model_opt.storage.testing import CONTEXT, RESNET34, resnet

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from servers.starting import Missing, Server, serve

ENVELOPE_ROWS = 10_000
GOALS = {
    "sqlite_write_rows_per_s": 200_000,
    "redis_write_rows_per_s": 50_000,
    "neo4j_write_rows_per_s": 5_000,
    "neo4j_update_rows_per_s": 8_000,
    "mongodb_write_rows_per_s": 5_000,
}
LIMITS = {
    "sqlite": "SQLite's B-tree (about half), the log's way to disk and the plans' keys (a sixth each)",
    "json": "the whole file is written again for every append",
    "redis": "client: packing of commands and the plans' keys; server: Lua and one fsync an append",
    "mongodb": "the server (nx-27017 here, a protocol server over SQLite in Python): one upsert statement a row",
    "neo4j": "the server: an index look-up and locks for each node and relationship; a cold JVM is slower still",
}
SIZES = {"sqlite": 1_000_000, "redis": 1_000_000, "json": 10_000, "mongodb": 100_000, "neo4j": 100_000}


def plans(count: int) -> list[Plan]:
    source = random.Random(0)
    made: dict[str, Plan] = {}
    while len(made) < count:
        chosen = [f"prune/{number}" for number in range(12) if source.random() < 0.42]
        plan = Plan(tuple(Choice(decision=name, option=str(source.randrange(6))) for name in chosen))
        made[plan.key] = plan
    return list(made.values())


def envelopes(rows: int) -> tuple[list[bytes], list[bytes]]:
    """The bytes that bring `rows` rows, and those that update them, in the federation that `measure` opens."""
    federation = f"bench{rows}"
    stream, made = Stream(origin="bench", federation=federation), plans(rows)

    def batches(samples: int) -> list[bytes]:
        moments = {"log_speedup": Moments.of([0.1 * number for number in range(samples)])}
        minted = []
        for start in range(0, rows, ENVELOPE_ROWS):
            signature = resnet(8, 11_000_000 + start // 100_000)
            part = [(plan, CONTEXT, moments) for plan in made[start : start + ENVELOPE_ROWS]]
            minted.append(encode(stream.mint(signature, part)))
        return minted

    return batches(1), batches(3)


def computed_s(server: Server | None) -> float:
    """Seconds of processor time of this process and of the server."""
    spent = time.process_time()
    if server is not None and server.process is not None and sys.platform == "linux":
        fields = Path(f"/proc/{server.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        spent += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return spent


def measure(name: str, url: str, rows: int, server: Server | None) -> dict[str, float]:
    store = open_store(url, f"bench{rows}")
    fresh, updates = envelopes(rows)
    store.counts()
    found: dict[str, float] = {}

    def timed(what: str, action: Callable[[], object]) -> None:
        began, computed = time.perf_counter(), computed_s(server)
        action()
        found[f"{name}_{what}_rows_per_s"] = rows / (time.perf_counter() - began)
        found[f"{name}_{what}_us_computed_per_row"] = (computed_s(server) - computed) / rows * 1e6

    timed("write", lambda: [store.append(data) for data in fresh])
    timed("update", lambda: [store.append(data) for data in updates])
    timed("read", store.rows)
    store.close()
    return found


@contextlib.contextmanager
def place(name: str, folder: Path) -> Iterator[tuple[str, Server | None]]:
    """The URL of a store, and its server if it has one."""
    if name in ("sqlite", "json"):
        yield (f"sqlite:///{folder / 'k.db'}" if name == "sqlite" else str(folder / "k.json")), None
        return
    with serve(name, folder / name) as server:
        yield server.url, server


def nearest(sizes: list[int], folder: Path) -> dict[str, float]:
    """Median milliseconds to find five neighbours: exactly, and by Chroma's index."""
    found: dict[str, float] = {}
    for size in sizes:
        source = random.Random(size)
        known = {
            one.key: one for one in (resnet(source.randint(2, 200), source.randint(10**5, 10**9)) for _ in range(size))
        }
        exact, index = Neighbours(known), ChromaIndex(folder / f"chroma-{size}")
        index.add(list(known.values()))
        found[f"nearest_exact_ms_{size}"] = median_ms(partial(exact.nearest, RESNET34.vector, 5))
        found[f"nearest_chroma_ms_{size}"] = median_ms(partial(index.nearest, RESNET34.vector, 20))
        index.close()
    return found


def median_ms(action: Callable[[], object], repeats: int = 20) -> float:
    action()
    spent = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        spent.append(time.perf_counter() - began)
    return sorted(spent)[repeats // 2] * 1e3


def run(names: list[str], quick: bool) -> dict[str, float]:
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in (name for name in names if name in SIZES):
            try:
                with place(name, folder) as (url, server):
                    sizes = (
                        [10_000] if quick else [size for size in (10_000, 100_000, 1_000_000) if size <= SIZES[name]]
                    )
                    for size in sizes:
                        found = measure(name, url, size, server)
                        results |= {f"{key}_{size}": value for key, value in found.items()} | found
            except Missing as error:
                print(f"{name}: {error}", file=sys.stderr)
        if "chroma" in names:
            results |= nearest([1_000, 10_000] if quick else [1_000, 10_000, 100_000], folder)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10,000 rows only")
    parser.add_argument("--json", action="store_true", help="figures as JSON; keys without a size are of the largest")
    parser.add_argument("--only", default=",".join([*SIZES, "chroma"]), help="which, separated by commas")
    arguments = parser.parse_args()
    results = run(arguments.only.split(","), arguments.quick)
    if arguments.json:
        print(json.dumps({key: round(value, 3) for key, value in results.items()}, indent=1))
        return
    for key, value in results.items():
        goal = f"   goal {GOALS[key]:,}" if key in GOALS else ""
        print(f"{key:48} {value:14,.1f}{goal}")
    for name, text in LIMITS.items():
        print(f"{name}: limited by {text}")


if __name__ == "__main__":
    main()
