"""`IntelligentOptimizer`: a model goes in, a smaller, faster, measured model comes out."""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from model_opt.autotuner.callbacks import Callbacks, LineProgress, Together
from model_opt.autotuner.constraints import Constraints
from model_opt.autotuner.fleet_engine import Cluster
from model_opt.autotuner.make_task import make_task
from model_opt.autotuner.progress_log import ProgressLog
from model_opt.autotuner.result import CompressionResult
from model_opt.autotuner.run import METHODS, Run, RunLimits, check_output
from model_opt.compression.evaluation.judge import EvalFn, JudgeAs
from model_opt.compression.inputs import Inputs
from model_opt.errors import InvalidInput, UnknownName
from model_opt.federation.store import KnowledgeStore
from model_opt.folders import passing
from model_opt.measuring.timing_lock import TimingLock
from model_opt.search.plan import Plan
from model_opt.storage.open import default_store_path, open_store, place_of


class IntelligentOptimizer:
    """Finds the best way to compress a model, by measuring on this device, and remembers what it measured."""

    def __init__(
        self,
        knowledge_base_path: str | Path | None = None,
        storage_backend: KnowledgeStore | str | Path | None = None,
        *,
        callbacks: Callbacks | None = None,
        device: str = "cpu",
        seed: int = 0,
    ) -> None:
        """Says where knowledge is kept; nothing is opened before the first optimisation.

        Parameters
        ----------
        knowledge_base_path
            A JSON file.
        storage_backend
            A store, or the URL of one; see `storage.open_store`. Without either knowledge is kept in an SQLite file in
            the user's data folder.
        callbacks
            Are told what happens, in place of the lines on standard error that tell it otherwise:
            `callbacks=Callbacks()` is quiet.
        device
            "cpu", "cuda" or "cuda:1".
        seed
            Of the search, and of what is drawn from data.
        """
        if knowledge_base_path is not None and storage_backend is not None:
            raise InvalidInput("give knowledge_base_path or storage_backend, not both")
        self._store_at = storage_backend if storage_backend is not None else knowledge_base_path
        self._callbacks = callbacks
        self._device = device
        self._seed = seed

    def optimize_auto(
        self,
        model: nn.Module,
        method: str = "rule_based",
        n_simulations: int = 50,
        timeout_seconds: float | None = None,
        constraints: Mapping[str, float | str] | None = None,
        example_input: Inputs | None = None,
        *,
        calibration_data: Iterable[Any] | None = None,
        eval_fn: EvalFn | None = None,
        judge_as: JudgeAs = None,
        train_data: Iterable[Any] | None = None,
        plans: Sequence[Plan | Mapping[str, str]] = (),
        freeze: Mapping[str, str] | None = None,
        exclude: Collection[str] = (),
        fallback: str | None = None,
        output: str | Path | None = None,
        ray_address: str | None = None,
        workers: int | None = None,
        name: str | None = None,
        state: str | None = None,
        patience: int | None = None,
    ) -> tuple[nn.Module, CompressionResult]:
        """Finds the best way to compress `model`, which is not changed.

        Parameters
        ----------
        model
            Any module; it is measured in eval mode, on the optimizer's device.
        method
            "rule_based" (the family's strategies and what is known, no search), "mcts" (a search) or "hybrid" (a
            search that starts from what is known of similar architectures).
        n_simulations
            How many plans are measured, failures included.
        timeout_seconds
            The time for everything, in seconds; None for no limit.
        constraints
            Those of `autotuner.constraints.RANGES`, shares also as "2%". Without `max_accuracy_drop` at most one point
            may be lost.
        example_input
            One input as the model is called with: a tensor, a tuple, or a mapping of names. Its batch is what is timed.
        calibration_data
            An iterable of inputs, batches or rows; in pairs with class indices, a class for each place, or zeros and
            ones for each column it is labelled data. One half is fitted on, the other judges.
        eval_fn
            Takes a model and returns its accuracy, a share; or several by name, of which the one that loses most
            counts. `(2.3, "min")` or `(31.4, "max")` says of another score which is better.
        judge_as
            What outputs are, all of them or some by name: "classes", "labels", "quantities" or "embedding".
        train_data
            An iterable of (inputs, target) for fine-tuning. With it techniques are fitted on its inputs, and all
            calibration data judges, or without any a part of `train_data`.
        plans
            Plans that are tried first.
        freeze
            Decisions that are fixed, with their options.
        exclude
            Techniques or decisions that are not to be used.
        fallback
            "original" keeps the original, at its size, for inputs that a compiled answer refuses.
        output
            A folder for the result and the model.
        ray_address
            Runs the search on a Ray cluster: "auto", host:port, or "local" for a cluster on this machine. Only
            searches do.
        workers
            How many workers the cluster's search has; None for one a slot.
        name
            The cluster's search, by which it is watched, stopped and extended.
        state
            The head node's folder that the cluster's searches are kept in.
        patience
            The cluster's search also ends after so many measured plans in a row that were no better.

        Returns
        -------
        tuple[nn.Module, CompressionResult]
            The optimised model, in eval mode, and what was measured.

        Raises
        ------
        InvalidInput
            For arguments that cannot be used; nothing is written.
        MeasurementFailed
            Where the model itself cannot be measured.
        SaveFailed
            Where `output` is full; it has the model and the result.
        """
        began = time.monotonic()
        wanted = Constraints.read(constraints)
        _check_call(method, n_simulations, timeout_seconds)
        _check_cluster(method, ray_address, {"workers": workers, "name": name, "state": state, "patience": patience})
        task = make_task(
            model,
            example_input=example_input,
            calibration_data=calibration_data,
            eval_fn=eval_fn,
            judge_as=judge_as,
            train_data=train_data,
            fallback=fallback,
            constraints=wanted,
            seed=self._seed,
            device=self._device,
            timing_lock=TimingLock(),
        )
        limits = RunLimits(
            method=method,
            budget=n_simulations,
            constraints=wanted,
            began=began,
            deadline=None if timeout_seconds is None else began + timeout_seconds,
        )
        cluster = None
        if ray_address is not None:
            where = place_of(self._store_at)
            cluster = Cluster(
                address=ray_address, workers=workers, name=name, state=state, store=where, patience=patience
            )
        log = None if output is None else ProgressLog(Path(output), {"method": method, "constraints": asdict(wanted)})
        with self._telling(timeout_seconds) as shown:
            told = shown if log is None else Together([log, shown])
            if self._store_at is None and (text := passing()) is not None:
                told.on_note(text)
            run = Run(task, limits, told, plans=plans, freeze=freeze, exclude=exclude, cluster=cluster)
            if output is not None:
                check_output(Path(output))
            with _opened(self._store_at) as store, log or nullcontext():
                optimised, result = run.go(store, output=None if output is None else Path(output))
            shown.on_end(result)
        return optimised, result

    def _telling(self, timeout_s: float | None) -> AbstractContextManager[Callbacks]:
        """What the user gave, or else a line a plan on standard error."""
        return LineProgress(timeout_s=timeout_s) if self._callbacks is None else nullcontext(self._callbacks)


def optimize(
    model: nn.Module,
    *,
    knowledge: str | Path | KnowledgeStore | None = None,
    callbacks: Callbacks | None = None,
    device: str = "cpu",
    seed: int = 0,
    **arguments: Any,
) -> tuple[nn.Module, CompressionResult]:
    """The optimised model and the result, in one call.

    Parameters
    ----------
    model
        Any module; it is not changed.
    knowledge
        A store, or the URL or path of one; without it an SQLite file in the user's data folder.
    callbacks, device, seed
        As for `IntelligentOptimizer`.
    **arguments
        Those of `IntelligentOptimizer.optimize_auto`.
    """
    optimizer = IntelligentOptimizer(storage_backend=knowledge, callbacks=callbacks, device=device, seed=seed)
    return optimizer.optimize_auto(model, **arguments)


def _check_call(method: str, n_simulations: int, timeout_seconds: float | None) -> None:
    if method not in METHODS:
        raise UnknownName("method", method, METHODS)
    if isinstance(n_simulations, bool) or not isinstance(n_simulations, int) or n_simulations < 1:
        raise InvalidInput(f"n_simulations must be a positive whole number, not {n_simulations!r}")
    if timeout_seconds is not None and not timeout_seconds > 0:
        raise InvalidInput(f"timeout_seconds must be positive, not {timeout_seconds!r}")


def _check_cluster(method: str, ray_address: str | None, more: Mapping[str, object]) -> None:
    """Refuses what a call without a cluster, or without a search, could only ignore."""
    given = [name for name, value in more.items() if value is not None]
    if ray_address is None and given:
        raise InvalidInput(f"only a cluster can use {' and '.join(given)}: give ray_address ('local', 'auto'), too")
    if ray_address is not None and method == "rule_based":
        raise InvalidInput("'rule_based' does not search and needs no cluster: use method='hybrid' or 'mcts' with one")


@contextmanager
def _opened(store_at: KnowledgeStore | str | Path | None) -> Iterator[KnowledgeStore]:
    """The user's store, closed afterwards only if it was opened here."""
    if store_at is not None and not isinstance(store_at, str | Path):
        yield store_at
        return
    store = open_store(store_at if store_at is not None else default_store_path())
    try:
        yield store
    finally:
        store.close()
