"""Damaged files: whatever of ours is read, it is read or refused by our own errors, and what is refused stays as it is.

`make soak` tries a hundred thousand of each kind; the figures are printed: python -m pytest -s
tests/storage/test_file_fuzz.py
"""

import copy
import dataclasses
import math
import os
import random
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hostile import altered, mutated
from made_up import CONTEXT, OBJECTIVE, SPACE
from model_opt.errors import FleetError, ModelOptError
from model_opt.exchange.bundle import read_bundle, write_bundle
from model_opt.exchange.shared import import_bundle
from model_opt.federation.stream import Stream
from model_opt.federation.wire import decode_record, encode
from model_opt.fleet.coordinator_service import CoordinatorService
from model_opt.fleet.coordinator_state import FleetRules
from model_opt.fleet.flush import context_fact
from model_opt.fleet.journal import MemoryJournal, SqliteJournal, look
from model_opt.fleet.leases import Holder
from model_opt.fleet.worker_state import WorkerState
from model_opt.search.evaluator import Measurement, Purpose
from model_opt.storage.open import open_store
from model_opt.storage.testing import RESNET18, entries

SOAK = bool(os.environ.get("MODEL_OPT_SOAK"))
ROUNDS = 100_000 if SOAK else 300
TEXTS = ("bundle", "knowledge.json", "knowledge.db", "state.db")
REPEATED = 20
"""As many spoilt bytes: one in a page of SQLite is seldom one that is read."""


def made(kind: str, folder: Path) -> Path:
    """A good file of this kind, alone in its folder."""
    path = folder / kind
    record = encode(Stream(origin="alpha").mint(RESNET18, entries(3)))
    if kind == "bundle":
        write_bundle(path, [record])
    elif kind == "state.db":
        service = CoordinatorService.at(folder, FleetRules(budget=20, objective=OBJECTIVE))
        service.remember(context_fact(CONTEXT))
        worker = WorkerState(Holder(worker="a", incarnation="1"), CONTEXT.key)
        for option in ("1", "2", "3"):
            wish = (SPACE.plan({"d0": option}), Purpose.EXPLORE)
            worker.hear(service.ask(worker.question(proposals=[wish], wanted=1)))
            grant = worker.start()
            assert grant is not None
            worker.finish(Measurement(plan=grant.plan, samples={"latency_ms": (1.0, 2.0)}), 0.1)
        worker.hear(service.ask(worker.question()))
        service.close()
    else:
        with open_store(path) as store:
            store.append(record)
    return path


def read(path: Path) -> None:
    """Reads a file as the commands do that write nothing."""
    if path.name == "bundle":
        for raw in read_bundle(path):
            decode_record(raw)
    elif path.name == "state.db":
        look(path)
    else:
        with open_store(path) as store:
            store.rows()
            store.signatures()


def taken_up(path: Path) -> None:
    """Opens a file to go on with it."""
    if path.name == "state.db":
        journal = SqliteJournal(path)
        try:
            journal.begin()
        finally:
            journal.close()
    elif path.name == "bundle":
        with open_store(path.with_name("kb.db")) as store:
            import_bundle(store, path, folder=path.parent)
    else:
        with open_store(path) as store:
            store.append(encode(Stream(origin="beta").mint(RESNET18, entries(1))))


def damaged(raw: bytes, source: random.Random) -> bytes:
    for _ in range(source.randint(1, REPEATED)):
        raw = mutated(raw, source) if source.random() < 0.5 else _changed_text(raw, source)
    return raw[: source.randrange(len(raw))] if source.random() < 0.1 else raw


def _changed_text(raw: bytes, source: random.Random) -> bytes:
    """Another character where a digit, a quote or a bracket is: what is a text stays one, and says something else."""
    places = [at for at, byte in enumerate(raw) if byte in b'0123456789"{}[],:']
    changed = bytearray(raw)
    changed[source.choice(places)] = source.choice(b'0123456789"{}[],:nE-.')
    return bytes(changed)


@pytest.mark.timeout(14_400)
@pytest.mark.parametrize("use", [read, taken_up], ids=["read", "taken up"])
@pytest.mark.parametrize("kind", TEXTS)
def test_a_damaged_file_is_read_or_refused_and_what_is_refused_stays(
    kind: str, use: Callable[[Path], None], tmp_path: Path
) -> None:
    (tmp_path / "good").mkdir()
    good = made(kind, tmp_path / "good").read_bytes()
    folder = tmp_path / "damaged"
    source = random.Random(int(os.environ.get("MODEL_OPT_SEED", "0")))
    refused, slowest_s, began = 0, 0.0, time.perf_counter()
    rounds = ROUNDS if use is read else ROUNDS // 10
    for _ in range(rounds):
        folder.mkdir()
        path = folder / kind
        raw = damaged(good, source)
        path.write_bytes(raw)
        if kind == "bundle" and source.random() < 0.8:  # else its digest refuses it at once
            write_bundle(path, [next(altered(source.getrandbits(60), 1)) for _ in range(3)])
            raw = path.read_bytes()
        start = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                use(path)
        except ModelOptError:
            refused += 1
            kept = [one for one in folder.iterdir() if one.name.startswith(kind) and one.read_bytes() == raw]
            assert kept, f"{kind} was refused, and is changed"
        slowest_s = max(slowest_s, time.perf_counter() - start)
        shutil.rmtree(folder)
    seconds = time.perf_counter() - began
    print(f"\n{rounds:,} of {kind} in {seconds:.0f} s, {refused:,} refused, the slowest took {slowest_s:.2f} s")
    assert refused


JUNK: tuple[Any, ...] = (None, -1, 1 << 80, math.nan, "", "x" * 1000, b"\xff", (), [[]], {"a": 1}, object)


def spoilt(value: Any, source: random.Random) -> Any:
    """A copy of a message in which one field, of it or of what is in it, is something else."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        name = source.choice([field.name for field in dataclasses.fields(value)])
        copied = copy.copy(value)
        inner = getattr(value, name)
        object.__setattr__(copied, name, source.choice(JUNK) if source.random() < 0.5 else spoilt(inner, source))
        return copied
    if isinstance(value, tuple) and value:
        at = source.randrange(len(value))
        return (*value[:at], spoilt(value[at], source), *value[at + 1 :])
    return source.choice(JUNK)


@pytest.mark.timeout(14_400)
def test_a_workers_message_is_answered_or_refused_and_the_others_go_on(tmp_path: Path) -> None:
    """Whatever one worker sends, another one's next question is answered, by the same life of the coordinator."""
    source = random.Random(int(os.environ.get("MODEL_OPT_SEED", "0")))
    died: list[BaseException] = []
    service = CoordinatorService(
        FleetRules(budget=10**9, objective=OBJECTIVE), MemoryJournal(), fatal=lambda error: died.append(error)
    )
    good = WorkerState(Holder(worker="good", incarnation="1"), CONTEXT.key)
    bad = WorkerState(Holder(worker="bad", incarnation="1"), CONTEXT.key)
    refused, rounds = 0, ROUNDS if SOAK else 1000
    for number in range(rounds):
        wish = [(SPACE.plan({f"d{i}": source.choice("0123") for i in range(8)}), Purpose.EXPLORE) for _ in range(2)]
        message = bad.question(proposals=wish, wanted=2)
        message = spoilt(message, source) if number % 3 else message  # or it would soon have nothing to report
        try:
            answer = service.ask(message)
            if isinstance(answer.serial, int) and bad.hear(answer) and bad.start() is not None:
                bad.finish(Measurement(plan=bad.running.plan, samples={"latency_ms": (1.0,)}), 0.1)
        except FleetError:
            refused += 1
        if number % 10 == 0:
            assert good.hear(service.ask(good.question(proposals=wish, wanted=1))), f"after {message}"
            if (grant := good.start()) is not None:
                good.finish(Measurement(plan=grant.plan, samples={"latency_ms": (1.0,)}), 0.1)
        if number % 100 == 0:
            service.state.book.validate()
    assert not died and service.status()["term"] == 1
    service.close()
    print(f"\n{rounds:,} messages, {refused:,} refused")
    assert refused
