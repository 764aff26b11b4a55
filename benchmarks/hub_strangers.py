"""What strangers cost a hub's members: 2,000 silent connections and 50 slow bodies, beside 20 members at work.

python benchmarks/hub_strangers.py [--seconds 30] [--strangers 2000] [--slow 50] [--members 20] [--json]

A real hub in a process of its own. The strangers come from as many addresses of the loopback network, send half a
request, and come again some seconds after they were thrown out; slow bodies are those of allowed members that send a
byte a second. Members push a record and ask for the status in turn, twice a second each. Quiet and troubled times
alternate: `push_p99_ratio` and `status_p99_ratio` are troubled over quiet (goal: at most 3), `memory_mb` the most that
the hub had.
"""

import argparse
import asyncio
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import defaultdict
from contextlib import ExitStack, suppress
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE.parent / "tests" / "hub")]

from running import RunningHub, Side  # noqa: E402

from model_opt.federation.identity import deployment_identity  # noqa: E402
from model_opt.hub.credentials import written  # noqa: E402
from model_opt.hub.sync import push  # noqa: E402
from model_opt.storage.open import open_store  # noqa: E402
from model_opt.storage.testing import RESNET18, entries  # noqa: E402

PAUSE_S, AGAIN_S = 0.5, (5.0, 15.0)
BODY = 1000
Times = dict[str, list[float]]


async def stranger(number: int, port: int) -> None:
    """Half a request from an address of its own, again and again."""
    address = f"127.1.{number // 250}.{1 + number % 250}"
    await asyncio.sleep(random.uniform(0, 5))
    while True:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
            writer.write(b"GET /heal")
            await reader.read(1)
            writer.close()
        await asyncio.sleep(random.uniform(*AGAIN_S))


async def slow_body(head: bytes, port: int) -> None:
    """A body that comes a byte a second, of an allowed member."""
    with suppress(OSError):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head)
        for _ in range(BODY):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(1)


async def trouble(port: int, strangers: int, heads: list[str]) -> None:
    alike = [stranger(number, port) for number in range(strangers)]
    await asyncio.gather(*alike, *(slow_body(head.encode(), port) for head in heads))


def member(side: Side, times: Times, until: float) -> None:
    """Pushes and asks in turn; what fails counts as long as it took."""
    rng = random.Random(side.identity.origin)
    time.sleep(rng.uniform(0, PAUSE_S))
    with side.client() as client:
        while time.monotonic() < until:
            side.measure((RESNET18, entries(3)))
            for name, work in (("push", lambda: push(side, client)), ("status", client.status)):
                began = time.monotonic()
                work()
                times[name].append(time.monotonic() - began)
                time.sleep(rng.uniform(0.5, 1.5) * PAUSE_S)


def minutes(sides: list[Side], seconds: float) -> Times:
    """What all members' requests took."""
    times: Times = defaultdict(list)
    until = time.monotonic() + seconds
    threads = [threading.Thread(target=member, args=(side, times, until)) for side in sides]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


def p99_ms(times: list[float]) -> float:
    return 1000 * statistics.quantiles(times, n=100)[98]


def slow_head(side: Side, hub: RunningHub) -> str:
    nonce = json.loads(urllib.request.urlopen(f"{hub.url}/v1/nonce").read())["nonce"]
    target = "/v1/local/records"
    signed = written(side.identity, method="POST", target=target, audience=hub.url, nonce=nonce, body=b"x" * BODY)
    lines = (f"POST {target} HTTP/1.1", "Host: x", f"Authorization: {signed}", f"Content-Length: {BODY}", "", "")
    return "\r\n".join(lines)


def memory_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    with ExitStack() as stack:
        hub = RunningHub(folder / "hub", ("--federation", "local", "--rate", "1000")).start()
        stack.callback(hub.kill)

        def deployment(name: str) -> Side:
            identity = deployment_identity(folder / name)
            hub.allow(identity.origin)
            store = stack.enter_context(open_store(folder / f"{name}.db"))
            return Side(store=store, identity=identity, folder=folder / name, url=hub.url)

        sides = [deployment(f"member{number}") for number in range(arguments.members)]
        slow = [deployment(f"slow{number}") for number in range(-(-arguments.slow // 4))]
        quiet, troubled = defaultdict(list), defaultdict(list)
        minutes(sides, 3)
        for _ in range(2):
            for name, taken in minutes(sides, arguments.seconds).items():
                quiet[name] += taken
            heads = [slow_head(slow[number // 4], hub) for number in range(arguments.slow)]
            words = [sys.executable, __file__, "--port", str(hub.port), "--strangers", str(arguments.strangers)]
            others = subprocess.Popen(words, stdin=subprocess.PIPE, text=True)
            assert others.stdin is not None
            others.stdin.write(json.dumps(heads) + "\n")
            others.stdin.flush()
            time.sleep(6)
            try:
                for name, taken in minutes(sides, arguments.seconds).items():
                    troubled[name] += taken
            finally:
                others.kill()
                others.wait()
            time.sleep(2)
        found: dict[str, object] = {"memory_mb": memory_mb(hub.process.pid if hub.process else 0)}
        for name in ("push", "status"):
            found[f"{name}_p99_ms"] = [p99_ms(quiet[name]), p99_ms(troubled[name])]
            found[f"{name}_p99_ratio"] = p99_ms(troubled[name]) / p99_ms(quiet[name])
            found[f"{name}_median_ms"] = [1000 * statistics.median(times[name]) for times in (quiet, troubled)]
            found[f"{name}_requests"] = [len(quiet[name]), len(troubled[name])]
        found["limits_that_bit"] = sorted({str(line.get("reason")) for line in hub.audit() if "reason" in line})
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--strangers", type=int, default=2000)
    parser.add_argument("--slow", type=int, default=50)
    parser.add_argument("--members", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    os.environ["NO_PROXY"] = "127.0.0.1"
    if arguments.port:
        asyncio.run(trouble(arguments.port, arguments.strangers, json.loads(sys.stdin.readline())))
        return
    with tempfile.TemporaryDirectory() as name:
        found = measure(Path(name), arguments)
    if arguments.json:
        print(json.dumps(found))
        return
    for key, value in found.items():
        print(f"{key}: {value}")


if __name__ == "__main__":
    main()
