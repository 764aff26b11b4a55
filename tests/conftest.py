"""Shared by all tests: what is long runs only in `make soak`; real servers, one of each for the whole session, or a
visible skip where one is missing. `make test` runs two processes (pytest-xdist), a core each."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from model_opt.actors.child_env import NEEDED, measuring_variables
from model_opt.actors.fork_server import fork_server
from servers.starting import Missing, Server, serve

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: else four threads on two cores

TESTS = Path(__file__).parent
SHARED = {
    "actors": "ray",
    "test_docs.py": "ray",
    "test_commands.py": "ray",
    "test_readme.py": "ray",
    "storage": "servers",
    "hub": "servers",
}
"""What uses the same clusters or servers stays in one process; every other file is by itself."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        path = item.path.relative_to(TESTS)
        item.add_marker(pytest.mark.xdist_group(SHARED.get(path.parts[0], str(path))))
    items.sort(key=lambda item: len(item.path.relative_to(TESTS).parts))  # whole programs, the longest tests, first
    if os.environ.get("MODEL_OPT_SOAK"):
        return
    skip = pytest.mark.skip(reason="long: make soak")
    for item in items:
        if "soak" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True, scope="session")
def forked_processes() -> Iterator[None]:
    """Measuring processes are forked from one that has imported what they need, as a fleet's on one machine are: that
    takes each of them ten seconds otherwise."""
    with fork_server(NEEDED, {**os.environ, **measuring_variables({})}):
        yield


@pytest.fixture(autouse=True)
def two_fresh_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two fresh processes time a result, the fewest that give an interval, and wait for no quiet, for other tests run
    beside them; outside of `make soak`, and of fixtures that serve a whole module: those have the usual four."""
    if not os.environ.get("MODEL_OPT_SOAK"):
        monkeypatch.setattr("model_opt.autotuner.fresh_starts.STARTS", 2)
        monkeypatch.setattr("model_opt.autotuner.fresh_starts.PATIENCE_S", 0.0)


def _session_server(name: str, factory: pytest.TempPathFactory) -> Iterator[Server]:
    try:
        with serve(name, factory.mktemp(name)) as server:
            yield server
    except Missing as error:
        if os.environ.get("MODEL_OPT_REQUIRE_SERVERS") == "1":
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from _session_server("redis", tmp_path_factory)


@pytest.fixture(scope="session")
def mongodb_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from _session_server("mongodb", tmp_path_factory)


@pytest.fixture(scope="session")
def neo4j_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from _session_server("neo4j", tmp_path_factory)


@pytest.fixture(scope="session")
def chroma_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from _session_server("chroma", tmp_path_factory)
