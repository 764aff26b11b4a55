"""A hub for a module's tests, and deployments that it allows."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running import LocalHub, RunningHub, Side

from model_opt.federation.identity import deployment_identity
from model_opt.storage.open import open_store


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    """One for a module's tests, each with deployments of its own; small limits, so that they are reached."""
    options = ("--max-body-mb", "0.25", "--max-record-mb", "0.125", "--rate", "1000", "--federation", "local")
    running = RunningHub(tmp_path_factory.mktemp("hub"), (*options, "--federation", "elsewhere")).start()
    yield running
    running.kill()


@pytest.fixture
def local_hub(tmp_path: Path) -> Iterator[LocalHub]:
    running = LocalHub(tmp_path / "hub")
    yield running
    running.close()


@pytest.fixture
def side(hub: RunningHub, tmp_path: Path) -> Iterator[Callable[..., Side]]:
    """Makes a deployment that the hub allows; its store is SQLite unless another URL is given."""
    made: list[Side] = []

    def make(name: str, url: str | None = None, *, allowed: bool = True, federation: str = "local") -> Side:
        folder = tmp_path / f"keys-{name}"
        identity = deployment_identity(folder)
        store = open_store(url or tmp_path / f"{name}.db", federation=federation)
        if allowed:
            hub.allow(identity.origin, federation=federation)
        made.append(Side(store=store, identity=identity, folder=folder, url=hub.url))
        return made[-1]

    os.environ["NO_PROXY"] = "127.0.0.1"
    yield make
    for one in made:
        one.store.close()
