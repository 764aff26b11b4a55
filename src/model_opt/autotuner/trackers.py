"""Callbacks that hand what is measured to an experiment tracker: MLflow, TensorBoard."""

from pathlib import Path
from typing import Any

from model_opt.autotuner.callbacks import Callbacks
from model_opt.autotuner.result import CompressionResult
from model_opt.autotuner.tally import scalars
from model_opt.errors import MissingDependency
from model_opt.search.plan import Plan
from model_opt.search.trial import Trial


class MLflowCallbacks(Callbacks):
    """Logs to the MLflow run that is active, or to one of its own: each plan as a step, figures and result at the end.

    `tracking_uri` is MLflow's ("sqlite:///mlflow.db", "http://…"); None leaves it as it is set. Raises
    `MissingDependency` without mlflow. One object serves one optimisation.
    """

    def __init__(self, *, tracking_uri: str | None = None, experiment: str | None = None) -> None:
        try:
            import mlflow
        except ImportError as error:
            raise MissingDependency("mlflow", "mlflow") from error
        self._mlflow: Any = mlflow
        self._ours = False
        if tracking_uri is not None:
            mlflow.set_tracking_uri(tracking_uri)
        if experiment is not None:
            mlflow.set_experiment(experiment)

    def on_start(self, *, plans: int, budget: int) -> None:
        """Begins a run where none is active."""
        if self._mlflow.active_run() is None:
            self._mlflow.start_run()
            self._ours = True
        self._mlflow.log_params({"plans": plans, "budget": budget})

    def on_measurement(self, observed: Trial, *, settled: int, budget: int, best: Plan | None) -> None:
        """Logs the plan's metrics as step `settled`."""
        self._mlflow.log_metrics(scalars(observed), step=settled)

    def on_end(self, result: CompressionResult) -> None:
        """Logs the figures, the plan, and the whole result as `result.json`; ends the run if it was begun here."""
        self._mlflow.log_metrics({f"final_{name}": figure.value for name, figure in result.figures.items()})
        self._mlflow.log_params({"method": result.method, "plan": str(result.plan), "feasible": result.feasible})
        self._mlflow.log_text(result.to_json(), "result.json")
        if self._ours:
            self._mlflow.end_run()
            self._ours = False


class TensorBoardCallbacks(Callbacks):
    """Writes an event file into `folder`: each plan as a step, its name as text, the figures at the end.

    Raises `MissingDependency` without tensorboard.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingDependency("tensorboard", "tensorboard") from error
        make: Any = SummaryWriter
        self._writer: Any = make(str(folder))

    def on_measurement(self, observed: Trial, *, settled: int, budget: int, best: Plan | None) -> None:
        """Writes the plan's metrics as step `settled`."""
        for name, value in scalars(observed).items():
            self._writer.add_scalar(f"measured/{name}", value, settled)
        self._writer.add_text("plan", observed.failure or str(observed.plan), settled)
        self._writer.flush()

    def on_end(self, result: CompressionResult) -> None:
        """Writes the figures and closes the file."""
        for name, figure in result.figures.items():
            self._writer.add_scalar(f"final/{name}", figure.value, len(result.measured))
        self._writer.add_text("answer", str(result.plan), len(result.measured))
        self._writer.close()
