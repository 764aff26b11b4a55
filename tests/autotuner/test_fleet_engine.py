"""What a search on a cluster needs of this machine, before anything is measured."""

import pytest

from model_opt.autotuner import fleet_engine
from model_opt.autotuner.fleet_engine import CLUSTER_BYTES, LOCAL, WORKER_BYTES, Cluster
from model_opt.errors import FleetError


@pytest.mark.parametrize("workers", [1, 3])
def test_a_cluster_on_this_machine_that_memory_has_no_room_for_cannot_be_made(workers, monkeypatch):
    needed = CLUSTER_BYTES + workers * WORKER_BYTES
    monkeypatch.setattr(fleet_engine, "usable_memory", lambda: needed)
    assert Cluster(address=LOCAL, workers=workers).workers == workers
    monkeypatch.setattr(fleet_engine, "usable_memory", lambda: needed - 1)
    with pytest.raises(FleetError, match="take fewer workers"):
        Cluster(address=LOCAL, workers=workers)
    assert Cluster(address="auto", workers=workers).workers == workers  # its memory is not this machine's
    monkeypatch.setattr(fleet_engine, "usable_memory", lambda: None)  # nobody says: not refused
    assert Cluster(address=LOCAL, workers=workers).workers == workers
