"""Which workers a cluster should have: a pure function of its nodes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from model_opt.fleet.submission import Placement


@dataclass(frozen=True, kw_only=True)
class ClusterNode:
    """A living node: its id, resources ("CPU", "GPU", …) and labels."""

    node_id: str
    resources: Mapping[str, float]
    labels: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A place for one worker. `name` is the worker's, the same whenever this node and number come up again."""

    name: str
    node_id: str
    gpus: float
    cpus: float


def nodes_of(listing: Iterable[Mapping[str, Any]]) -> list[ClusterNode]:
    """The living nodes in what `ray.nodes()` returns."""
    return [
        ClusterNode(node_id=n["NodeID"], resources=dict(n.get("Resources", {})), labels=dict(n.get("Labels") or {}))
        for n in listing
        if n.get("Alive")
    ]


def worker_slots(nodes: Iterable[ClusterNode], placement: Placement) -> list[Slot]:
    """The slots to fill, node by node in turn, so that a limited number of workers is spread out."""
    fitting = [node for node in nodes if placement.labels.items() <= node.labels.items()]
    gpus = placement.gpus
    if gpus is None:
        gpus = 1.0 if any(node.resources.get("GPU", 0) > 0 for node in fitting) else 0.0
    per_node = [
        [
            Slot(name=f"{node.node_id[:12]}-{number}", node_id=node.node_id, gpus=gpus, cpus=placement.cpus)
            for number in range(_room(node, gpus, placement.cpus))
        ]
        for node in sorted(fitting, key=lambda node: node.node_id)
    ]
    rounds = max(map(len, per_node), default=0)
    slots = [slots[number] for number in range(rounds) for slots in per_node if number < len(slots)]
    return slots[: placement.workers]


def _room(node: ClusterNode, gpus: float, cpus: float) -> int:
    """How many workers fit the node: of a fraction of a GPU as many as fit each whole one."""
    by_cpu = int(node.resources.get("CPU", 0.0) / cpus + 1e-9) if cpus else 1_000
    if not gpus:
        return by_cpu if cpus else 1
    devices = node.resources.get("GPU", 0.0)
    by_gpu = int(devices) * int(1 / gpus + 1e-9) if gpus < 1 else int(devices / gpus + 1e-9)
    return min(by_cpu, by_gpu)
