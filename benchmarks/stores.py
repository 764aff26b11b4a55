"""Rows a second that each store writes, updates and reads, and how fast the nearest signature is found.

    python benchmarks/stores.py [--quick] [--json] [--only sqlite,json,redis,mongodb,neo4j,chroma]

Starts the servers itself. Writing is one `append` of bytes for every 10,000 rows (one metric, plans of about five
choices): decoding, checking, the plans' keys, the records and the rows, durably. Every plan is new and like no other,
so a graph grows by two or three states a row too; `known_plans` are another origin's rows of plans that are there:
new rows and nothing else, which is what the goal for Neo4j is about.
Beside the rate by the clock stands the time that client and server computed, which a busy machine hardly changes; what
is left of the clock is waiting, for the disk or for others. Neo4j is given 10,000 rows before the clock starts, for
some of its Java to be compiled (at 40,000 it still gets faster).
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
from model_opt.storage.chroma_index import ChromaIndex
from model_opt.storage.open import open_store
from model_opt.storage.testing import CONTEXT, RESNET34, entries, resnet

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from servers.starting import Missing, Server, serve

ENVELOPE_ROWS = 10_000
GOALS = {
    "sqlite_write_rows_per_s": 200_000,
    "redis_write_rows_per_s": 50_000,
    "neo4j_known_plans_rows_per_s": 5_000,
    "neo4j_update_rows_per_s": 8_000,
    "mongodb_write_rows_per_s": 5_000,
}
LIMITS = {
    "sqlite": "the client: SQLite's B-tree about half, the plans' keys and packing a quarter, the log's checksums",
    "json": "the client: the whole file is written again for every append",
    "redis": "the client: packing of commands and the plans' keys; then the server's Lua and one fsync an append",
    "mongodb": "the server (nx-27017 here, a protocol server over SQLite in Python): one statement, one commit a row",
    "neo4j": "the server: locks, constraint checks and records for each node and relationship",
}
SIZES = {"sqlite": 1_000_000, "redis": 1_000_000, "json": 100_000, "mongodb": 1_000_000, "neo4j": 1_000_000}
WARM_ROWS = {"neo4j": 10_000}


def plans(count: int) -> list[Plan]:
    source = random.Random(0)
    made: dict[str, Plan] = {}
    while len(made) < count:
        chosen = [f"prune/{number}" for number in range(12) if source.random() < 0.42]
        plan = Plan(tuple(Choice(decision=name, option=str(source.randrange(6))) for name in chosen))
        made[plan.key] = plan
    return list(made.values())


def envelopes(rows: int, federation: str, origin: str = "bench") -> tuple[list[bytes], list[bytes]]:
    """The bytes that bring `rows` rows, and those that update them."""
    stream, made = Stream(origin=origin, federation=federation), plans(rows)

    def batches(samples: int) -> list[bytes]:
        moments = {"log_speedup": Moments.of([0.1 * number for number in range(samples)])}
        minted = []
        for start in range(0, rows, ENVELOPE_ROWS):
            signature = resnet(8, 11_000_000 + start // 100_000)
            part = [(plan, CONTEXT, moments) for plan in made[start : start + ENVELOPE_ROWS]]
            minted.append(encode(stream.mint(signature, part)))
        return minted

    return batches(1), batches(3)


def server_s(server: Server | None) -> float:
    """Seconds of processor time of the server's process; zero where that cannot be told."""
    if server is None or server.process is None or sys.platform != "linux":
        return 0.0
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(name: str, url: str, rows: int, server: Server | None) -> dict[str, float]:
    store = open_store(url, f"bench{rows}")
    fresh, updates = envelopes(rows, f"bench{rows}")
    store.counts()
    found: dict[str, float] = {}

    def timed(what: str, action: Callable[[], object]) -> None:
        began, client, served = time.perf_counter(), time.process_time(), server_s(server)
        action()
        spent = time.perf_counter() - began
        shares = {"client": time.process_time() - client, "server": server_s(server) - served}
        found[f"{name}_{what}_rows_per_s"] = rows / spent
        found.update({f"{name}_{what}_{who}_us_per_row": share / rows * 1e6 for who, share in shares.items()})
        found[f"{name}_{what}_waiting_us_per_row"] = max(0.0, spent - sum(shares.values())) / rows * 1e6
        print(f"{name}, {rows:,} rows: {what} {rows / spent:,.0f} rows/s", file=sys.stderr)

    timed("write", lambda: [store.append(data) for data in fresh])
    timed("update", lambda: [store.append(data) for data in updates])
    timed("read", store.rows)
    if name == "neo4j":
        others, _ = envelopes(rows, f"bench{rows}", "other")
        timed("known_plans", lambda: [store.append(data) for data in others])
    store.close()
    return found


def warm(name: str, url: str) -> None:
    rows = WARM_ROWS.get(name)
    if rows:
        store = open_store(url, "warm")
        for data in (*envelopes(rows, "warm")[0], *envelopes(rows, "warm")[1]):
            store.append(data)
        store.rows()
        store.close()


@contextlib.contextmanager
def place(name: str, folder: Path) -> Iterator[tuple[str, Server | None]]:
    """The URL of a store, and its server if it has one."""
    if name in ("sqlite", "json"):
        yield (f"sqlite:///{folder / 'k.db'}" if name == "sqlite" else str(folder / "k.json")), None
        return
    with serve(name, folder / name) as server:
        yield server.url, server


def nearest(sizes: list[int], folder: Path) -> dict[str, float]:
    """Milliseconds to find five neighbours: by a SQLite store (its first call reads every signature), by Chroma."""
    found: dict[str, float] = {}
    for size in sizes:
        source = random.Random(size)
        known = [resnet(source.randint(2, 200), number) for number in source.sample(range(10**5, 10**9), size)]
        store, index = open_store(f"sqlite:///{folder / f'near-{size}.db'}"), ChromaIndex(folder / f"chroma-{size}")
        stream, row = Stream(origin="bench"), entries(1)
        for start in range(0, size, 1000):
            store.append(*(stream.mint(signature, row) for signature in known[start : start + 1000]))
        index.add(known)
        began = time.perf_counter()
        store.nearest(RESNET34, 5)
        found[f"nearest_first_ms_{size}"] = (time.perf_counter() - began) * 1e3
        found[f"nearest_exact_ms_{size}"] = median_ms(partial(store.nearest, RESNET34, 5))
        found[f"nearest_chroma_ms_{size}"] = median_ms(partial(index.nearest, RESNET34.vector, 20))
        index.close()
        store.close()
    return found


def median_ms(action: Callable[[], object], repeats: int = 20) -> float:
    action()
    spent = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        spent.append(time.perf_counter() - began)
    return sorted(spent)[repeats // 2] * 1e3


def run(names: list[str], sizes: list[int]) -> dict[str, float]:
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in (name for name in names if name in SIZES):
            try:
                with place(name, folder) as (url, server):
                    warm(name, url)
                    for size in (size for size in sizes if size <= SIZES[name]):
                        found = measure(name, url, size, server)
                        results |= {f"{key}_{size}": value for key, value in found.items()} | found
            except Missing as error:
                print(f"{name}: {error}", file=sys.stderr)
        if "chroma" in names:
            results |= nearest([size // 10 for size in sizes], folder)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10,000 rows only")
    parser.add_argument("--json", action="store_true", help="figures as JSON; keys without a size are of the largest")
    parser.add_argument("--only", default=",".join([*SIZES, "chroma"]), help="which, separated by commas")
    parser.add_argument("--rows", help="which sizes, separated by commas, instead of 10,000, 100,000 and 1,000,000")
    arguments = parser.parse_args()
    sizes = [10_000] if arguments.quick else [10_000, 100_000, 1_000_000]
    sizes = [int(size) for size in arguments.rows.split(",")] if arguments.rows else sizes
    results = run(arguments.only.split(","), sizes)
    if arguments.json:
        print(json.dumps({key: round(value, 3) for key, value in results.items()}, indent=1))
        return
    for key, value in results.items():
        goal = f"   goal {GOALS[key]:,}" if key in GOALS else ""
        print(f"{key:48} {value:14,.1f}{goal}")
    for name, text in LIMITS.items():
        if f"{name}_write_rows_per_s" in results:
            spent = {who: results[f"{name}_write_{who}_us_per_row"] for who in ("client", "server", "waiting")}
            parts = ", ".join(f"{who} {part / sum(spent.values()):.0%}" for who, part in spent.items())
            print(f"{name}: {parts} of the time to write; limited by {text}")


if __name__ == "__main__":
    main()
