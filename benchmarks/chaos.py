"""Searches of a real fleet, one after the other, while everything goes wrong: what they settle and store stays exact.

python benchmarks/chaos.py [--minutes 10] [--seed 0] [--store redis] [--json]

Real Ray (a head and a node), a real Redis or Neo4j behind a proxy that delays, stalls, cuts and resets; processes are
killed and frozen, results are garbage, the wall clock jumps, the state's disk is full or read-only (as root, who can
mount a small one), an older state is brought back, two drivers drive. Every search must settle its budget exactly; the
store must hold exactly the rows that it settled; nothing may stand still for more than a minute longer than a fault
lasts; a fault that troubles a search must be told by its status; no process and no file may be left. Exit code 1, and
`wrong` says what, where that does not hold.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import urlsplit

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "tests")]

from chaotic.driver import FLUSHED_S  # noqa: E402
from chaotic.faults import FAULTS, Fault, Status  # noqa: E402
from chaotic.misbehaving import JUMPING_CLOCK  # noqa: E402
from chaotic.proxy import Proxy  # noqa: E402

from servers.starting import Missing, serve  # noqa: E402

BUDGET = 240
STILL_S, NAMED_S, SEARCH_S = 60.0, 20.0, 420.0
"""How long nothing may settle beyond what a fault lasts; how long after a fault its name may take; a search's most."""
DISK, SOME = "48m", 20
NOTHING: Status = {"settled": 0, "term": 0, "expired": 0, "lost_workers": 0, "failures": {}, "pid": 0, "ending": None}


class Fleet:
    """A Ray cluster of this machine: a head without room, and a node with two processors."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        quick = {"health_check_period_ms": 1000, "health_check_timeout_ms": 1000, "health_check_failure_threshold": 3}
        head = {"num_cpus": 0, "include_dashboard": False, "_system_config": quick, "object_store_memory": 100 << 20}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = str(self._cluster.address)
        self.node: Any = None
        self.grow()

    def grow(self) -> None:
        self.node = self._cluster.add_node(num_cpus=2, object_store_memory=80 << 20)

    def lose(self) -> None:
        """The raylet is killed, with all that it started."""
        self._cluster.remove_node(self.node, allow_graceful=False)

    def close(self) -> None:
        self._cluster.shutdown()


class MainThread:
    """What only the main thread may do: servers and nodes that another starts end with it (`PR_SET_PDEATHSIG`)."""

    def __init__(self) -> None:
        self._asked: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()

    def do(self, function: Callable[[], Any]) -> None:
        """From another thread: asks for it, and waits until it is done."""
        done: Future[Any] = Future()
        self._asked.put((function, done))
        done.result()

    def wait(self, seconds: float) -> None:
        """In the main thread: does what is asked for in so many seconds."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                function, done = self._asked.get(timeout=left)
            except Empty:
                return
            try:
                done.set_result(function())
            except Exception as error:
                done.set_exception(error)


class Search:
    """One search under faults; a `World` for them."""

    def __init__(
        self, number: int, work: Path, main: MainThread, fleet: Fleet, server: Any, proxy: Proxy, url: str, seed: int
    ) -> None:
        self.name = f"night{number}"
        self.rng = random.Random(f"{seed}/{number}")
        self.folder, self.clock = work / f"folder{number}", work / "clock"
        self.mounted = (work / "disk").is_mount()
        self.kept = work / "disk" / self.name
        self.server, self.proxy, self.url = server, proxy, url
        self.lost = 0
        self.end: Status | None = None
        self.said: list[str] = []
        self.still_s = 0.0
        self._main, self._fleet, self._work = main, fleet, work
        self._status: Status = NOTHING
        self._progress = time.monotonic()
        self._seen = time.monotonic()
        self._drivers: list[subprocess.Popen[str]] = []
        self._wanted = True
        self._lock = threading.Lock()
        self.folder.mkdir()

    # the world of faults --------------------------------------------------------------------------------------------

    def status(self) -> Status:
        return self._status

    @property
    def unseen_s(self) -> float:
        """How old the last status is."""
        return time.monotonic() - self._seen

    def pids(self, command: str) -> list[int]:
        return [pid for pid, line in processes(self._work) if command in line]

    def replace_node(self) -> None:
        self._fleet.lose()
        self._main.do(self._fleet.grow)

    def start_server(self) -> None:
        self._main.do(self.server.start)

    def start_driver(self) -> None:
        """One more driver; whoever asks for one wants the search to be driven."""
        self._wanted = True
        with self._lock:
            driver = subprocess.Popen(self._command(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            self._drivers.append(driver)
        threading.Thread(target=self._listen, args=(driver,), daemon=True).start()

    def kill_drivers(self) -> None:
        self._wanted = False
        with self._lock:
            for driver in self._drivers:
                driver.kill()
                driver.wait()
            self._drivers = []

    def release(self) -> None:
        subprocess.run([*self._command(), "release"], check=False, capture_output=True, timeout=STILL_S)

    # driving --------------------------------------------------------------------------------------------------------

    def _command(self) -> list[str]:
        words = (self._fleet.address, self.name, str(self.kept.parent), self.url, str(self.folder), str(BUDGET))
        return [sys.executable, "-m", "chaotic.driver", *words]

    def _listen(self, driver: "subprocess.Popen[str]") -> None:
        for line in driver.stdout or ():
            kind, value = next(iter(json.loads(line).items())) if line.startswith("{") else ("", None)
            if kind == "status":
                if value["settled"] != self._status["settled"] or value["trouble"]:
                    self._progressed()
                self._status, self._seen = {**NOTHING, **value}, time.monotonic()
            elif kind == "end":
                self.end = value
        errors = (driver.stderr.read() if driver.stderr else "").strip().splitlines()
        if driver.wait() > 0:
            self.said.append(errors[-1] if errors else f"exit code {driver.returncode}")

    def _progressed(self) -> None:
        self.still_s = max(self.still_s, time.monotonic() - self._progress)
        self._progress = time.monotonic()

    def look_after(self) -> None:
        """Starts a driver where one ended before the search did."""
        with self._lock:
            self._drivers = [driver for driver in self._drivers if driver.poll() is None]
            driven = bool(self._drivers)
        if self._wanted and not driven and self.end is None:
            self.start_driver()

    def forget(self) -> None:
        self.kill_drivers()
        shutil.rmtree(self.kept, ignore_errors=True)


class Chaos:
    """Searches one after the other, for some minutes."""

    def __init__(self, seconds: float, seed: int, store: str, work: Path) -> None:
        self.until, self.seed, self.store, self.work = time.monotonic() + seconds, seed, store, work
        self.rng = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.named: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.searches: list[dict[str, Any]] = []
        self._left: list[Fault] = []
        self._main = MainThread()

    def run(self) -> dict[str, Any]:
        with ExitStack() as stack:
            server = stack.enter_context(serve(self.store, self.work / self.store))
            parts = urlsplit(server.url)
            proxy = Proxy(parts.port or 0, self.rng)
            stack.callback(proxy.close)
            fleet = Fleet()
            stack.callback(fleet.close)
            url = server.url.replace(f":{parts.port}", f":{proxy.port}")
            while time.monotonic() < self.until:
                self._one(Search(len(self.searches), self.work, self._main, fleet, server, proxy, url, self.seed))
        return {
            "seed": self.seed,
            "store": self.store,
            "searches": self.searches,
            "faults": {name: [self.done[name], self.named[name]] for name in sorted(self.done)},
            "settled": sum(one["settled"] for one in self.searches),
            "longest_still_s": max((one["still_s"] for one in self.searches), default=0.0),
            "wrong": self.wrong,
        }

    def _one(self, search: Search) -> None:
        began = time.monotonic()
        over = threading.Event()
        lanes = [threading.Thread(target=self._lane, args=(search, of_store, over)) for of_store in (False, True)]
        search.start_driver()
        for lane in lanes:
            lane.start()
        while search.end is None and time.monotonic() - began < SEARCH_S:
            search.look_after()
            if search.status()["ending"]:
                over.set()
            self._main.wait(0.5)
        over.set()
        while any(lane.is_alive() for lane in lanes):
            self._main.wait(0.2)
        while search.end is None and time.monotonic() - began < SEARCH_S + FLUSHED_S + STILL_S:
            search.look_after()
            self._main.wait(0.5)
        self._judge(search, time.monotonic() - began)
        search.forget()

    def _lane(self, search: Search, of_store: bool, over: threading.Event) -> None:
        """Faults of the store, or all others, one after the other while the search lasts."""
        while not over.wait(search.rng.uniform(1, 4)) and time.monotonic() < self.until:
            at_least = SOME if of_store else 1  # before there is something to tell a store nobody misses it
            if search.status()["settled"] >= at_least and not search.status()["ending"]:
                self._fault(self._draw(search, of_store), search)

    def _draw(self, search: Search, of_store: bool) -> Fault:
        """All in turn, in an order of chance."""
        able = [one for one in FAULTS if search.mounted or not one.needs_disk]
        kind = [one for one in able if one.name.startswith("store") == of_store]
        left = [one for one in self._left if one in kind]
        if not left:
            self._left += kind
            left = kind
        fault = self.rng.choice(left)
        self._left.remove(fault)
        return fault

    def _fault(self, fault: Fault, search: Search) -> None:
        before, seen = search.status(), False
        lasts_s = search.rng.uniform(*fault.lasts_s)
        end = time.monotonic() + lasts_s
        print(f"{search.name} {before['settled']:4d}  {fault.name}, {lasts_s:.0f} s", file=sys.stderr, flush=True)
        try:
            with fault.do(search):
                while time.monotonic() < end:
                    seen = seen or (fault.named is not None and fault.named(before, search.status()))
                    time.sleep(0.1)
        except Exception as error:
            self._wrong(search, f"{fault.name} could not be done: {type(error).__name__}: {error}")
            return
        while fault.named is not None and not seen and time.monotonic() < end + NAMED_S and search.end is None:
            if search.proxy.mode != "through" or search.unseen_s > 2:
                end = time.monotonic()  # what a store, or a driver, has to say waits for it
            seen = fault.named(before, search.status())
            time.sleep(0.1)
        self.done[fault.name] += 1
        ended = search.status()["ending"] is not None  # before it could tell
        self.named[fault.name] += bool(fault.named is None or seen or ended)
        if fault.named is not None and not (seen or ended):
            self._wrong(search, f"{fault.name} at {before['settled']} was never named in its status")

    def _wrong(self, search: Search, what: str) -> None:
        self.wrong.append(f"{search.name}: {what}")
        print(self.wrong[-1], file=sys.stderr, flush=True)

    def _judge(self, search: Search, seconds: float) -> None:
        self.searches.append(
            {
                "name": search.name,
                "settled": search.status()["settled"],
                "seconds": round(seconds, 1),
                "still_s": round(search.still_s, 1),
                "drivers_said": Counter(search.said),
                "lost": search.lost,
            }
        )

        wrong = partial(self._wrong, search)
        if search.end is None:
            wrong(f"not over after {seconds:.0f} s; the last status: {search.status()}; drivers: {search.said[-3:]}")
            return
        if (search.end["ending"], search.end["status"]["settled"]) != ("budget", BUDGET):
            wrong(f"ended {search.end['ending']!r} with {search.end['status']['settled']} of {BUDGET}")
        if search.end["late"]:
            wrong(f"not all is in the store: {search.end['late']}")
        if search.still_s > STILL_S + max(fault.lasts_s[1] for fault in FAULTS):
            wrong(f"nothing settled for {search.still_s:.0f} s")
        self._compare(search, search.end["rows"], wrong)

    def _compare(self, search: Search, rows: dict[str, int], wrong: Any) -> None:
        stored = samples_in(search.server.url, search.name)
        if not search.lost and stored != rows:
            differing = {plan: (rows.get(plan), stored.get(plan)) for plan in rows.keys() | stored.keys()}
            wrong(f"rows and store differ (rows, store): { {p: b for p, b in differing.items() if b[0] != b[1]} }")
        missing = {plan: n for plan, n in rows.items() if stored.get(plan, 0) < n}
        if missing:
            wrong(f"not in the store: {missing}")
        beyond = sum(stored.values()) - sum(rows.values())
        if beyond > search.lost:
            wrong(f"the store has {beyond} samples more than the search, {search.lost} settlements were brought back")


def samples_in(url: str, origin: str) -> dict[str, int]:
    """Plan key → samples of `latency_ms` that the store has from `origin`, all epochs together."""
    from model_opt.federation.join import latest_rows
    from model_opt.storage.open import open_store

    with open_store(url) as store:
        rows = latest_rows(row for row in store.rows() if row.origin == origin).values()
        counts: Counter[str] = Counter()
        for row in rows:
            counts[row.plan.key] += row.moments["latency_ms"].n
    return dict(counts)


def processes(work: Path) -> list[tuple[int, str]]:
    """(pid, command line) of what runs in `work`'s environment, beside this process."""
    mark = f"MODEL_OPT_CHAOS_CLOCK={work}/".encode()
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int(place.name) != os.getpid() and mark in (place / "environ").read_bytes():
                found.append((int(place.name), (place / "cmdline").read_bytes().replace(b"\0", b" ").decode()))
    return found


def prepare(work: Path) -> None:
    """The environment of everything that is started, a clock that can jump, and a small disk where one can be made."""
    (work / "disk").mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(work / "disk")], check=False, capture_output=True
    )
    (work / "python").mkdir()
    (work / "python" / "sitecustomize.py").write_text(JUMPING_CLOCK)
    (work / "clock").write_bytes(bytes(8))
    for kind in ("DATA", "STATE", "CONFIG", "CACHE"):
        os.environ[f"XDG_{kind}_HOME"] = str(work / kind.lower())
    path = [str(work / "python"), str(HERE), str(HERE.parent / "tests"), os.environ.get("PYTHONPATH", "")]
    os.environ |= {
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "MODEL_OPT_CHAOS_CLOCK": str(work / "clock"),
        "RAY_AUTH_MODE": "disabled",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_worker_niceness": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_TMPDIR": str(work / "ray"),
    }
    (work / "ray").mkdir()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", choices=["redis", "neo4j"], default="redis")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="chaos-"))
    prepare(work)
    try:
        chaos = Chaos(60 * arguments.minutes, arguments.seed, arguments.store, work)
        found = chaos.run()
        end = time.monotonic() + 15
        while (left := processes(work)) and time.monotonic() < end:
            time.sleep(0.2)
        found["wrong"] += [f"left running: {line}" for _, line in left]
        for pid, _ in left:
            os.kill(pid, 9)
        found["without"] = [] if (work / "disk").is_mount() else ["disks that are full or read-only: root only"]
    except Missing as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        subprocess.run(["umount", "-l", str(work / "disk")], check=False, capture_output=True)
        shutil.rmtree(work, ignore_errors=True)
    if arguments.json:
        print(json.dumps(found))
    else:
        for one in found["searches"]:
            print("  ".join(f"{name} {value}" for name, value in one.items()))
        for name, (done, named) in found["faults"].items():
            print(f"{done:4d} times, named {named:4d}: {name}")
        print("\n".join(found["wrong"]) or "everything held")
    return 1 if found["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
