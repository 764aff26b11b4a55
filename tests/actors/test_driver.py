"""Who starts a search on a cluster measures nothing itself: the model as it is, the space and the final figures are a
worker's."""

import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from torch import nn

from made_up import CONTEXT, Sleeping, metrics
from model_opt.actors.cluster_measurer import measurer_on_cluster
from model_opt.autotuner import IntelligentOptimizer, run
from model_opt.autotuner.callbacks import Callbacks
from model_opt.errors import FleetError, InvalidInput, MeasurementFailed
from model_opt.fleet.submission import Placement
from model_opt.measuring.measurer import Measurer
from model_opt.search.evaluator import Measurement, Purpose
from model_opt.search.plan import Plan

NODE = {"object_store_memory": 80 << 20}
pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def node(cluster: Any) -> Any:
    """A raylet with room for one worker."""
    return cluster.add_node(num_cpus=1, labels={"class": "device"}, **NODE)


class Phases(Callbacks):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.phases: list[str] = []

    def on_phase(self, name: str, plan: Plan | None) -> None:
        self.phases.append(name)


def small_cnn() -> nn.Module:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)]
    return nn.Sequential(*convolutions, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)).eval()


def refuse(*arguments: Any, **options: Any) -> Any:
    raise AssertionError("the driver is asked to measure, or what it can do")


def test_a_driver_without_a_device_gets_an_answer_that_workers_measured(
    cluster: Any, node: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MeasuringChild", "inspect", "build_space"):
        monkeypatch.setattr(run, name, refuse)
    told = Phases()
    optimised, result = IntelligentOptimizer(tmp_path / "kb.json", callbacks=told).optimize_auto(
        small_cnn(),
        "hybrid",
        2,
        constraints={"max_accuracy_drop": 1.0},
        example_input=torch.randn(2, 1, 28, 28),
        plans=[{"clean": "fused"}],
        exclude=["openvino", "onnxruntime", "aot_inductor", "torch_compile"],
        ray_address="auto",
        state=str(tmp_path / "state"),
        output=tmp_path / "out",
    )
    assert optimised(torch.randn(2, 1, 28, 28)).shape == (2, 10)
    assert (tmp_path / "out" / "model.pt").is_file() and result.fleet["settled"] == 2
    assert result.figures["speedup"].low <= result.figures["speedup"].value
    assert result.context["threads"] >= 1 and result.baseline["latency_ms"] > 0
    if result.plan.choices:
        assert any(phase.startswith("fresh process") for phase in told.phases)


def test_what_the_workers_space_does_not_have_is_refused(cluster: Any, node: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="decision"):
        IntelligentOptimizer(tmp_path / "kb.json").optimize_auto(
            small_cnn(),
            "hybrid",
            2,
            example_input=torch.randn(2, 1, 28, 28),
            plans=[{"nonsense": "1"}],
            ray_address="auto",
            state=str(tmp_path / "state"),
        )


def test_errands_run_beside_the_measuring_process_and_outlive_its_device(cluster: Any, node: Any) -> None:
    phases: list[str] = []

    def doubled(measurer: Measurer, value: int) -> tuple[int, str]:
        measurer.tell("doubling")
        time.sleep(2.0)
        return 2 * value, measurer.describe().context_key

    with measurer_on_cluster(partial(Sleeping, 0.01), Placement(), on_phase=phases.append) as measurer:
        assert measurer.describe().more["measured_on"] == node.node_id
        measured = measurer.measure(Plan(), Purpose.EXPLORE)
        assert isinstance(measured, Measurement) and measured.samples["latency_ms"] == (metrics(Plan())["latency_ms"],)
        assert measurer.errand(doubled, 21) == (42, CONTEXT.key) and phases[-1] == "doubling"
        os.kill(measurer.errand(lambda measurer: os.getpid()), signal.SIGKILL)
        time.sleep(0.5)
        assert measurer.describe().context_key == CONTEXT.key
        with pytest.raises(MeasurementFailed):
            measurer.call(lambda evaluator: evaluator.nothing_that_it_has)


def test_nobody_waits_for_ever_for_a_slot(cluster: Any, node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from model_opt.actors import cluster_measurer

    monkeypatch.setattr(cluster_measurer, "PATIENCE_S", 1.0)
    with pytest.raises(FleetError, match="no node of the cluster fits"):
        measurer_on_cluster(partial(Sleeping, 0.01), Placement(labels={"class": "none such"}))
    phases: list[str] = []
    holding = ray.remote(num_cpus=1)(lambda: time.sleep(60)).remote()
    time.sleep(3.0)
    with measurer_on_cluster(partial(Sleeping, 0.01), Placement(), on_phase=phases.append) as measurer:
        measurer.deadline = time.monotonic() + 3.0
        with pytest.raises(MeasurementFailed, match="no slot of the cluster was free"):
            measurer.describe()
    assert phases == ["slot"]
    ray.cancel(holding, force=True)
