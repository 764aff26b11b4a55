"""What trackers and notebooks are told, read back from the trackers' own files."""

import json
import math

import pytest
from made_results import made_result

from model_opt.autotuner.trackers import MLflowCallbacks, TensorBoardCallbacks


@pytest.fixture(scope="module")
def result():
    return made_result(6)


def tell(callbacks, result):
    callbacks.on_start(plans=100, budget=6)
    for number, seen in enumerate(result.observations, 1):
        callbacks.on_measurement(seen, settled=number, budget=6, best=None)
    callbacks.on_end(result)


@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_every_plan_as_a_step_and_the_result(result, tmp_path, monkeypatch):
    import mlflow

    monkeypatch.chdir(tmp_path)
    tell(MLflowCallbacks(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="compress"), result)
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("compress").experiment_id])
    history = {point.step: point.value for point in client.get_metric_history(run.info.run_id, "speedup")}
    for number, seen in enumerate(result.observations, 1):
        if seen.failure is None:
            assert math.isclose(history[number], math.exp(seen.metrics["log_speedup"]))
    assert math.isclose(run.data.metrics["final_speedup"], result.speedup)
    assert run.data.params["plan"] == str(result.plan) and run.info.status == "FINISHED"
    assert mlflow.active_run() is None


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_has_every_plan_as_a_step(result, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tell(TensorBoardCallbacks(tmp_path), result)
    events = EventAccumulator(str(tmp_path)).Reload()
    speedups = {event.step: event.value for event in events.Scalars("measured/speedup")}
    measured = [n for n, seen in enumerate(result.observations, 1) if seen.failure is None]
    assert sorted(speedups) == measured
    assert math.isclose(events.Scalars("final/speedup")[0].value, result.speedup, rel_tol=1e-5)


def test_a_data_frame_has_a_row_for_every_plan(result):
    frame = result.to_frame()
    assert len(frame) == len(result.observations) and frame["pareto"].sum() >= len(result.pareto)
    assert {"plan", "speedup", "compression_ratio", "accuracy_drop", "failure", "precision"} <= set(frame.columns)


def test_a_notebook_shows_figures_and_a_sketch(result):
    shown = result._repr_html_()
    assert (
        f"{result.speedup:.2f}x" in shown and "6 plans measured" in shown and "<svg" in shown and "script" not in shown
    )
    assert json.loads(result.to_json())["plan"] and shown.count("<circle") == len(result.pareto)
