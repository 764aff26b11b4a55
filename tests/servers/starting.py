"""Real database servers for tests and benchmarks: each on a free loopback port, with its data in a temporary folder.

`serve(name, folder)` hands out the server that `MODEL_OPT_TEST_<NAME>_URL` names, or starts one. A server that is
started here ends with the process that started it, even if that is killed (Linux).
"""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

NAMES = ("redis", "mongodb", "neo4j", "chroma")
_UP_S = 240.0
_PASSWORD = "loopback-only"


class Missing(Exception):
    """A server's program is not on this machine; says how to bring it."""


@dataclass
class Server:
    """A server that can be killed and started again with its data."""

    name: str
    url: str
    command: list[str] = field(default_factory=list)
    ready: Callable[[], None] = lambda: None
    log: Path | None = None
    process: subprocess.Popen[bytes] | None = None

    @property
    def ours(self) -> bool:
        """Whether it was started here, and so may be killed."""
        return bool(self.command)

    def start(self) -> None:
        with Path(self.log).open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=_end_with_parent
            )
        end = time.monotonic() + _UP_S
        while True:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.name} ended at once: {Path(self.log).read_text(errors='replace')[-2000:]}")
            try:
                self.ready()
            except Exception:
                if time.monotonic() > end:
                    self.kill()
                    raise
                time.sleep(0.1)
            else:
                return

    def kill(self) -> None:
        """SIGKILL: no farewell, no flush."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self) -> None:
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
        self.process = None


@contextmanager
def serve(name: str, folder: Path) -> Iterator[Server]:
    """The server called `name`; raises `Missing` where it is neither given nor installed."""
    given = os.environ.get(f"MODEL_OPT_TEST_{name.upper()}_URL")
    if given:
        yield Server(name=name, url=given)
        return
    server = _MAKERS[name](folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _program(name: str, advice: str) -> str:
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise Missing(f"{name} is not installed: {advice}")
    return found


def _redis(folder: Path) -> Server:
    program, port = _program("redis-server", "apt-get install redis-server, or make servers"), free_port()
    folder.mkdir(parents=True, exist_ok=True)
    url = f"redis://:{_PASSWORD}@127.0.0.1:{port}/0"

    def ready() -> None:
        import redis

        redis.Redis.from_url(url).ping()

    durable = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
    place = ["--dir", str(folder), "--bind", "127.0.0.1", "--port", str(port)]
    command = [program, *place, *durable, "--requirepass", _PASSWORD]
    return Server(name="redis", url=url, command=command, ready=ready, log=folder / "redis.log")


def _mongodb(folder: Path) -> Server:
    program, port = _program("nx-27017", "pip install nx-27017, or make servers"), free_port()
    (folder / "data").mkdir(parents=True, exist_ok=True)
    url = f"mongodb://127.0.0.1:{port}/model_opt"

    def ready() -> None:
        import pymongo

        with pymongo.MongoClient(url, serverSelectionTimeoutMS=500) as client:
            client.admin.command("ping")

    files = ["--log-file", str(folder / "nx.log"), "--pid-file", str(folder / "nx.pid")]
    command = [program, "--data-dir", str(folder / "data"), "-p", str(port), *files]
    return Server(name="mongodb", url=url, command=command, ready=ready, log=folder / "mongodb.log")


def _chroma(folder: Path) -> Server:
    program, port = _program("chroma", "pip install chromadb"), free_port()
    folder.mkdir(parents=True, exist_ok=True)
    url = f"http://127.0.0.1:{port}"

    def ready() -> None:
        urllib.request.urlopen(f"{url}/api/v2/heartbeat", timeout=1).close()

    command = [program, "run", "--path", str(folder / "data"), "--host", "127.0.0.1", "--port", str(port)]
    return Server(name="chroma", url=url, command=command, ready=ready, log=folder / "chroma.log")


def _neo4j(folder: Path) -> Server:
    root = Path(os.environ.get("MODEL_OPT_SERVERS", Path.home() / ".cache" / "model_opt" / "servers"))
    home = root / "neo4j-5.26.20"
    if not (home / ".complete").exists():
        raise Missing("Neo4j is not installed: make servers")
    program, port = _program("java", "apt-get install openjdk-17-jre-headless"), free_port()
    _neo4j_configuration(folder, port)
    opened = ("java.base/java.nio", "java.base/java.io", "java.base/sun.nio.ch", "java.base/java.util.concurrent")
    command = [program, "-Xms128m", "-Xmx1g", *(f"--add-opens={name}=ALL-UNNAMED" for name in opened)]
    command += ["-cp", f"{home / 'lib'}/*", "org.neo4j.server.CommunityEntryPoint", f"--home-dir={folder}"]
    command += [f"--config-dir={folder / 'conf'}", "--console-mode"]
    address = f"bolt://127.0.0.1:{port}"
    return Server(
        name="neo4j",
        url=f"bolt://neo4j:{_PASSWORD}@127.0.0.1:{port}/neo4j",
        command=command,
        ready=lambda: _neo4j_ready(address),
        log=folder / "neo4j.log",
    )


def _neo4j_configuration(folder: Path, port: int) -> None:
    (folder / "conf").mkdir(parents=True, exist_ok=True)
    places = {name: folder / name for name in ("data", "logs", "run", "plugins", "import")}
    settings = {f"server.directories.{name}": place for name, place in places.items()} | {
        "server.directories.transaction.logs.root": folder / "data" / "transactions",
        "server.bolt.listen_address": f"127.0.0.1:{port}",
        "server.bolt.advertised_address": f"127.0.0.1:{port}",
        "server.http.enabled": "false",
        "server.https.enabled": "false",
        "server.memory.pagecache.size": "64m",
        "dbms.usage_report.enabled": "false",
    }
    for place in places.values():
        place.mkdir(exist_ok=True)
    (folder / "conf" / "neo4j.conf").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))


def _neo4j_ready(address: str) -> None:
    """Logs in; the first time with the first password, which the server wants changed."""
    from neo4j import GraphDatabase
    from neo4j.exceptions import AuthError

    try:
        with GraphDatabase.driver(address, auth=("neo4j", _PASSWORD), max_transaction_retry_time=0) as driver:
            driver.execute_query("RETURN 1", database_="neo4j")
    except AuthError:
        with GraphDatabase.driver(address, auth=("neo4j", "neo4j")) as driver:
            change = f"ALTER CURRENT USER SET PASSWORD FROM 'neo4j' TO '{_PASSWORD}'"
            driver.execute_query(change, database_="system")
        raise


_MAKERS: dict[str, Callable[[Path], Server]] = {
    "redis": _redis,
    "mongodb": _mongodb,
    "neo4j": _neo4j,
    "chroma": _chroma,
}
