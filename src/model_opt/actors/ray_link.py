"""The way from a worker to its search's coordinator through Ray, and what a worker fetches there to measure with."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from model_opt.actors.cluster import find_coordinator
from model_opt.fleet.leases import Holder
from model_opt.fleet.messages import Reply, WorkRequest
from model_opt.fleet.submission import Manifest, Submission, fetched
from model_opt.measuring.child import MeasuringChild
from model_opt.measuring.variables import worker_variables
from model_opt.search.context import Context

ANSWER_S = 30.0


class RayLink:
    """The way to the coordinator through Ray, which holds calls back while the coordinator is started again."""

    def __init__(self, search: str) -> None:
        self._coordinator = find_coordinator(search)

    def ask(self, ask: WorkRequest) -> Reply:
        """See `CoordinatorLink`."""
        reply: Reply = ray.get(self._coordinator.ask.remote(ask), timeout=ANSWER_S)
        return reply

    def heartbeat(self, holder: Holder, held: frozenset[str]) -> None:
        """See `CoordinatorLink`."""
        self._coordinator.heartbeat.remote(holder, held)

    def begin(self, worker: str) -> bool:
        """Says that a worker comes to start; whether the search goes on."""
        goes_on: bool = ray.get(self._coordinator.begin.remote(worker), timeout=ANSWER_S)
        return goes_on

    def register(self) -> tuple[Manifest, Submission]:
        """The search."""
        manifest, request = ray.get(self._coordinator.register.remote(), timeout=ANSWER_S)
        return manifest, request

    def chunk(self, number: int) -> bytes:
        """A piece of the factory's pickle."""
        piece: bytes = ray.get(self._coordinator.chunk.remote(number), timeout=10 * ANSWER_S)
        return piece

    def introduce(self, worker: str, context: Context | None, description: Mapping[str, Any]) -> None:
        """Tells what the evaluator says of itself."""
        ray.get(self._coordinator.introduce.remote(worker, context, description), timeout=ANSWER_S)


def child_of(link: RayLink, registered: tuple[Manifest, Submission]) -> MeasuringChild:
    """The measuring process of a search, with the factory's pickle kept on this machine."""
    manifest, request = registered
    cache = Path(tempfile.gettempdir()) / f"model-opt-{os.getuid()}" / "bundles"
    env = worker_variables(request.placement.env)
    return MeasuringChild(fetched(manifest, cache, link.chunk), env=env, deadlines=request.deadlines)
