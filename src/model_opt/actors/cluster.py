"""The way into a Ray cluster, and the names of what runs there."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from model_opt.errors import FleetError, ModelOptError

NAMESPACE = "model_opt"
_PREFIX = "search/"
PROBE_S = 5.0
OBJECTS_BYTES = 256 << 20
"""Of shared memory, on one machine: a search's files pass through in pieces. Ray's default is a third of all memory,
whatever a container may use."""
HEAD = {"node:__internal_head__": 0.001}
"""A resource that only the head node has; hard affinity to its id would outlast the node and never be met again."""


def connect(address: str | None, *, cpus: int | None = None) -> None:
    """Joins the cluster at `address` ("auto", "ray://…", host:port), or starts one on this machine for None.

    Does nothing where this process is connected already. A local cluster has `cpus` logical CPUs and ends with this
    process. Raises `FleetError` where nothing answers at `address`.
    """
    import ray

    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "namespace": NAMESPACE}
    if address is None:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's default, 15, lets every other program go first
        with _on_loopback():
            ray.init(
                address="local", num_cpus=cpus, include_dashboard=False, object_store_memory=OBJECTS_BYTES, **quiet
            )
        return
    try:
        if _answers(address):
            ray.init(address=address, **quiet)
            return
        with _on_loopback():  # a cluster that listens on 127.0.0.1 only
            if not _answers(address):
                raise ConnectionError("nothing listens there")
            ray.init(address=address, **quiet)
    except (ConnectionError, TimeoutError, ValueError) as error:
        raise FleetError(f"no Ray cluster answers at {address!r}: {error}") from error


def _answers(address: str) -> bool:
    """Whether something listens at `address`: Ray itself would try for minutes. Raises `ConnectionError` for "auto"
    where no cluster was started."""
    from ray._private import services

    if "://" in address:
        return True
    found = services.canonicalize_bootstrap_address(address)
    if found is None:
        return False
    host, _, port = found.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_S).close()
    except (OSError, ValueError):
        return False
    return True


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Lets a cluster that starts inside the block listen on 127.0.0.1 only.

    Ray replaces that address by the host's own wherever it is asked for (`_node_ip_address`, `--node-ip-address`),
    unless it was told that this host is no part of a cluster: its switch for Windows and macOS, which works everywhere.
    """
    from ray._private import ray_constants

    switch = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    before = os.environ.get(switch), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[switch], ray_constants.ENABLE_RAY_CLUSTER = "0", False  # for the processes of the cluster, and for us
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before[1]
        if before[0] is None:
            del os.environ[switch]
        else:
            os.environ[switch] = before[0]


def coordinator_name(search: str) -> str:
    """The name of a search's coordinator."""
    return f"{_PREFIX}{search}"


def worker_name(search: str, slot: str) -> str:
    """The name of the worker in a slot."""
    return f"worker/{search}/{slot}"


def find_coordinator(search: str) -> Any:
    """The handle of a search's coordinator; raises `FleetError`, naming the searches that run."""
    import ray

    try:
        return ray.get_actor(coordinator_name(search), namespace=NAMESPACE)
    except ValueError as error:
        running = ", ".join(running_searches()) or "none"
        raise FleetError(f"no search {search!r} runs here (running: {running}); resume it by its name") from error


def answer(reference: Any, *, timeout_s: float | None = None) -> Any:
    """What a call to an actor returned. Its own errors are raised as they were, Ray's as `FleetError`."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(reference, timeout=timeout_s)
    except RayTaskError as error:
        if isinstance(error.cause, ModelOptError):
            raise error.cause from None
        raise FleetError(f"a process of the search failed: {error.cause or error}") from error
    except RayError as error:
        raise FleetError(f"the cluster does not answer: {error}") from error


def running_searches() -> list[str]:
    """The names of searches whose coordinator lives, finished ones that still answer included."""
    return sorted(name.removeprefix(_PREFIX) for name in _named() if name.startswith(_PREFIX))


def living_workers(search: str) -> dict[str, str]:
    """The workers of a search, those that are being started again included: actor name by slot."""
    prefix = worker_name(search, "")
    return {name.removeprefix(prefix): name for name in _named() if name.startswith(prefix)}


def _named() -> list[str]:
    from ray.util import list_named_actors

    actors = list_named_actors(all_namespaces=True)
    return [actor["name"] for actor in actors if actor["namespace"] == NAMESPACE]


def disconnect() -> None:
    """Leaves the cluster; one that `connect` started on this machine ends with it."""
    import ray

    ray.shutdown()
