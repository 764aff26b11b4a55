"""A search over something that is not compression: how to store a table of numbers on disk.

Every plan is carried out for real: the table is laid out, filtered, compressed and read back. What is searched for is
the smallest file that can be read within a time limit; sizes are exact, times are not, so the limit is verified at the
end.

    python examples/any_problem.py [--budget 60]
"""

import argparse
import bz2
import lzma
import time
import zlib
from collections.abc import Iterator, Mapping

import numpy as np

from model_opt.search import Decision, Forbid, SearchSpace, search

SPACE = SearchSpace(
    [
        Decision("layout", ["rows", "columns"]),
        Decision("dtype", ["int64", "int32", "int16"], ordered=True),
        Decision("delta", ["none", "previous", "second"]),
        Decision("shuffle", ["none", "bytes"]),
        Decision("codec", ["none", "zlib", "bz2", "lzma"]),
        Decision("level", ["1", "3", "6", "9"], ordered=True),
    ],
    forbidden=[Forbid({"codec": ["none"], "level": ["3", "6", "9"]}, "there is no level without a codec")],
)

CODECS = {
    "none": (lambda raw, level: raw, lambda raw: raw),
    "zlib": (zlib.compress, zlib.decompress),
    "bz2": (bz2.compress, bz2.decompress),
    "lzma": (lambda raw, level: lzma.compress(raw, preset=level), lzma.decompress),
}


def measurements(rows: int = 20_000) -> np.ndarray:
    """A table as a logger writes it, `[rows, 3]`: time stamps, a slow random walk, a few states."""
    rng = np.random.default_rng(0)
    stamps = np.cumsum(rng.integers(9, 12, rows)) % 30_000
    walk = np.cumsum(rng.integers(-3, 4, rows)) % 20_000
    return np.stack([stamps, walk, rng.choice([0, 7, 300], rows, p=[0.8, 0.15, 0.05])], axis=1)


TABLE = measurements()
READ_MS = 1.2


def write(plan: Mapping[str, str]) -> bytes:
    columns = TABLE.astype(plan["dtype"])
    for _ in range({"none": 0, "previous": 1, "second": 2}[plan["delta"]]):
        columns = np.diff(columns, axis=0, prepend=columns[:1] * 0)
    flat = (columns.T if plan["layout"] == "columns" else columns).ravel()
    if plan["shuffle"] == "bytes":
        flat = flat.view(np.uint8).reshape(len(flat), -1).T.ravel()
    return CODECS[plan["codec"]][0](flat.tobytes(), int(plan["level"]))


def read(plan: Mapping[str, str], raw: bytes) -> np.ndarray:
    data = np.frombuffer(CODECS[plan["codec"]][1](raw), dtype=np.uint8)
    if plan["shuffle"] == "bytes":
        data = np.ascontiguousarray(data.reshape(np.dtype(plan["dtype"]).itemsize, -1).T).ravel()
    flat = data.view(plan["dtype"])
    columns = flat.reshape(3, -1).T if plan["layout"] == "columns" else flat.reshape(-1, 3)
    for _ in range({"none": 0, "previous": 1, "second": 2}[plan["delta"]]):
        columns = np.cumsum(columns, axis=0, dtype=plan["dtype"])
    return columns


def evaluate(plan: Mapping[str, str]) -> Iterator[Mapping[str, float]]:
    """Yields the size at once; the time to read takes several goes, and is spared where the size is no good."""
    raw = write(plan)
    yield {"kilobytes": len(raw) / 1000}
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        back = read(plan, raw)
        seconds.append(time.perf_counter() - start)
    if not np.array_equal(back, TABLE):
        raise ValueError("the table does not come back as it was")
    yield {"log_read_ms": float(np.log(1e3 * min(seconds)))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=int, default=60)
    budget = parser.parse_args().budget
    result = search(
        SPACE,
        evaluate,
        budget=budget,
        minimize="kilobytes",
        constraints={"log_read_ms": float(np.log(READ_MS))},
        noise={"log_read_ms": None},
        seed=0,
    )
    print(f"{len(result.observations)} plans tried of {SPACE.total_plans}")
    print("recommended:", ", ".join(f"{name}={option}" for name, option in result.best.items()))
    for name, estimate in result.recommendation.estimates.items():
        print(f"  {name}: {estimate.mean:.3f} ± {estimate.std:.3f}")
    print("smallest file, whatever it takes:", result.answer().best)
    print("what matters:", {name: round(share, 2) for name, share in result.searcher.importance().items()})


if __name__ == "__main__":
    main()
