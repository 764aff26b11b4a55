"""The decoder against hostile bytes: no crash, no hang, and no more memory than four times the limit.

`make soak` tries a million inputs; the figures are printed: python -m pytest -s tests/federation/test_fuzz.py
"""

import os
import resource
import time
import tracemalloc

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostile import DATA, altered, claiming
from model_opt.errors import WireError
from model_opt.federation.admission import Admission, Gate
from model_opt.federation.encoded_record import EncodedRecord
from model_opt.federation.record_index import RecordIndex
from model_opt.federation.wire import WireLimits, decode_record, encode

BATCH = 100
SOAK = bool(os.environ.get("MODEL_OPT_SOAK"))
ROUNDS = 10_000 if SOAK else 100
GATE = Gate(federation="local", trusted={"alpha"})


def survives(raw: bytes) -> bool:
    """Whether `raw` is a record. Either it is refused with a `WireError`, or it can be read, written and judged."""
    assert GATE.judge(raw, RecordIndex()).decision is Admission.REFUSED
    try:
        record = decode_record(raw)
    except WireError:
        return False
    assert decode_record(encode(record)) is not None
    for envelope in EncodedRecord.of(record).envelopes:
        assert len(envelope.rows) == len(envelope.block)
    return True


def test_altered_bytes_are_refused_without_a_crash() -> None:
    began, slowest, read = time.perf_counter(), 0.0, 0

    @settings(max_examples=ROUNDS, deadline=None, database=None)
    @given(st.integers(0, 2**63))
    def rounds(seed: int) -> None:
        nonlocal slowest, read
        start = time.perf_counter()
        read += sum(survives(raw) for raw in altered(seed, BATCH))
        slowest = max(slowest, time.perf_counter() - start)

    rounds()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds = time.perf_counter() - began
    print(
        f"\n{ROUNDS * BATCH:,} altered records in {seconds:.0f} s, {read:,} of them still records, slowest hundred "
        f"{slowest:.2f} s, peak memory of the process {peak:.0f} MiB"
    )


@settings(max_examples=100_000 if SOAK else 1000, deadline=None, database=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_without_a_crash(raw: bytes) -> None:
    assert not survives(raw) and not survives(b"\x94\xa9model_opt" + raw)


def big(rows: int, decisions: int, metrics: list, columns: int, codes: str = "u1") -> bytes:
    """An envelope that claims this much, with `columns` bytes of body."""
    meta = msgpack.unpackb(msgpack.unpackb((DATA / "envelope-2.bin").read_bytes())[2])
    options = [[str(option), 1] for option in range(3)]
    meta |= {"rows": rows, "codes": codes, "metrics": metrics, "context_of": ""}
    meta |= {"decisions": [[f"d{number:04d}", options] for number in range(decisions)]}
    return claiming(meta, bytes(columns))


def whole(decisions: int, full: bool) -> bytes:
    """About 8 MiB that add up."""
    metric = ["log_speedup", 0, "", "u1" if full else "", full]
    width = decisions + (33 if full else 8)
    rows = min((8 * 2**20 - 2**17) // width, 1_000_000)
    metric[1] = rows
    source = np.random.default_rng(0)
    codes = source.integers(0, 4, (rows, decisions), dtype=np.uint8).tobytes()
    body = codes + (np.ones(rows, np.uint8).tobytes() + bytes(32 * rows) if full else bytes(8 * rows))
    raw = big(rows, decisions, [metric], 0)
    return claiming(msgpack.unpackb(msgpack.unpackb(raw)[2]), body)


CLAIMS = {
    "a million rows in no bytes": lambda: big(1_000_000, 0, [], 0),
    "a million rows, sixty metrics": lambda: big(1_000_000, 0, [[str(i), 10**6, "", "", False] for i in range(60)], 99),
    "wide codes": lambda: big(1_000_000, 1, [["a", 1_000_000, "", "", False]], 8_000_000, "u8"),
    "few decisions, single samples": lambda: whole(12, False),
    "no decisions": lambda: whole(0, False),
    "many decisions": lambda: whole(800, False),
    "full moments": lambda: whole(8, True),
    "empty lists": lambda: claiming(b"\x81\xa1a" + b"\xdc\x0f\xff" * 60 + b"\x90" * 200_000, b""),
    "lists in lists": lambda: claiming(b"\x81\xa1a" + b"\x91" * 200_000, b""),
    "maps": lambda: claiming(b"\x81\xa1a" + (b"\xdc\x0f\xff" + b"\x80" * 4095) * 60, b""),
    "nested lists of lists": lambda: claiming(b"\x81\xa1a\xdc\x00\x3f" + (b"\xdc\x0f\xff" + b"\x90" * 4095) * 63, b""),
    "many contexts": lambda: claiming({"contexts": [[str(i), [], "f", 1, 1, []] for i in range(4000)]}, b""),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_memory_stays_below_four_times_the_limit(claim: str) -> None:
    raw, limits = CLAIMS[claim](), WireLimits()
    assert len(raw) <= limits.max_bytes
    tracemalloc.start()
    try:
        decode_record(raw, limits)
    except WireError as error:
        print(error)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"{claim}: {len(raw) / 2**20:.2f} MiB of input, {peak / 2**20:.1f} MiB at the peak")
    assert peak + len(raw) <= 4 * limits.max_bytes
