"""Shared by all tests: what is long runs only in `make soak`; real servers, one of each for the whole session, or a
visible skip where one is missing. `make test` runs two processes (pytest-xdist), a core each."""

import inspect
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from model_opt.measuring.fork_server import fork_server
from model_opt.measuring.variables import NEEDED, measuring_variables
from servers.starting import Missing, Server, serve

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: else four threads on two cores

TESTS = Path(__file__).parent
PAGE_S = 15.0
SHARED = {"actors": "ray", "storage": "servers", "hub": "servers"}
"""What uses the same clusters or servers stays in one process; every other file is by itself."""


class ByFile(LoadScopeScheduling):
    """Tests of one file, or of files that share something, go to one process, so that fixtures of a module are made
    once. Not pytest-xdist's groups: under pytest 9.2 their marks are not used, without a word."""

    def _split_scope(self, nodeid: str) -> str:
        path = PurePosixPath(nodeid.partition("::")[0]).relative_to(TESTS.name)
        return SHARED.get(path.parts[0], str(path))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: len(item.path.relative_to(TESTS).parts))  # whole programs, the longest tests, first
    if os.environ.get("MODEL_OPT_SOAK"):
        return
    skip = pytest.mark.skip(reason="long: make soak")
    for item in items:
        if "soak" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True, scope="session")
def a_users_own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Knowledge, identity and searches of tests are not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DATA", "STATE"):
            patch.setenv(f"XDG_{name}_HOME", str(tmp_path_factory.mktemp(name.lower())))
        yield


@pytest.fixture(autouse=True, scope="session")
def forked_processes() -> Iterator[None]:
    """Measuring processes are forked from one that has imported what they need, as a fleet's on one machine are: that
    takes each of them ten seconds otherwise."""
    with fork_server(NEEDED, {**os.environ, **measuring_variables({})}):
        yield


@pytest.fixture(autouse=True, scope="session")
def two_fresh_starts() -> Iterator[None]:
    """Two fresh processes time a result, the fewest that give an interval, and wait for no quiet, for other tests run
    beside them; outside of `make soak`."""
    with pytest.MonkeyPatch.context() as patch:
        if not os.environ.get("MODEL_OPT_SOAK"):
            patch.setattr("model_opt.autotuner.finish.STARTS", 2)
            patch.setattr("model_opt.autotuner.finish.PATIENCE_S", 0.0)
        yield


@pytest.fixture
def short_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the pages' code asks for, a search ends within `PAGE_S` seconds; not in `make soak`."""
    if os.environ.get("MODEL_OPT_SOAK"):
        return
    from model_opt.autotuner import IntelligentOptimizer

    whole = IntelligentOptimizer.optimize_auto

    def short(*args: Any, **kwargs: Any) -> Any:
        call = inspect.signature(whole).bind(*args, **kwargs)
        call.arguments["timeout_seconds"] = min(call.arguments.get("timeout_seconds") or PAGE_S, PAGE_S)
        return whole(*call.args, **call.kwargs)

    monkeypatch.setattr(IntelligentOptimizer, "optimize_auto", short)


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
