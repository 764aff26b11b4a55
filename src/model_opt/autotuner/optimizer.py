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
from model_opt.autotuner.progress_log import ProgressLog
from model_opt.autotuner.request import make_task
from model_opt.autotuner.result import CompressionResult
from model_opt.autotuner.run import METHODS, Run, RunLimits, check_output
from model_opt.compression.evaluation.accuracy import EvalFn, JudgeAs
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
        storage_backend: KnowledgeStore | str | None = None,
        *,
        callbacks: Callbacks | None = None,
        device: str = "cpu",
        seed: int = 0,
    ) -> None:
        """Says where knowledge is kept: a JSON file (`knowledge_base_path`), a store or the URL of one
        (`storage_backend`), or else an SQLite file in the user's data folder.

        `callbacks` are told what happens, in place of the lines on standard error that tell it otherwise:
        `callbacks=Callbacks()` is quiet. Nothing is opened before the first optimisation.
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
        """The optimised model and the result. The user's model is not changed.

        `method` is "rule_based" (the family's strategies and what is known, no search), "mcts" (a search) or
        "hybrid" (a search that starts from what is known of similar architectures). `n_simulations` counts measured
        plans, failures included; `timeout_seconds` covers everything. `constraints` are those of
        `autotuner.constraints.RANGES`, shares also as "2%"; without `max_accuracy_drop` at most one point may be lost.
        `calibration_data` is an iterable of inputs (batches or rows; in pairs with class indices, a class for each
        place, or zeros and ones for each column it is labelled data): one half is fitted on, the other judges.
        `train_data` yields (inputs, target) for fine-tuning; with it techniques are fitted on its inputs, and all
        calibration data judges, or without any a part of `train_data`. `eval_fn` takes a model and returns its
        accuracy, a share, or several by name, of which the one that loses most counts; (2.3, "min") or (31.4, "max")
        says of another score which is better. `judge_as` says what outputs are, all of them or some by name:
        "classes", "labels", "quantities" or "embedding". `plans` are tried first; `freeze` fixes decisions, `exclude`
        names techniques or decisions not to be used. `fallback="original"` keeps the original, at its size, for inputs
        that a compiled answer refuses. `output` is a folder for the result and the model. `ray_address` ("auto",
        host:port, or "local" for a cluster on this machine) runs the search on a Ray cluster with `workers` workers,
        one a slot if None, as the search `name`, kept in the head node's folder `state`; there the search also ends
        after `patience` measured plans in a row that were no better.

        Raises `InvalidInput` (and nothing is written) for arguments that cannot be used, `MeasurementFailed` where the
        model itself cannot be measured, `SaveFailed` (with the model and the result) where `output` is full.
        """
        began = time.monotonic()
        wanted = Constraints.read(constraints)
        _check_call(method, n_simulations, timeout_seconds)
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


def _check_call(method: str, n_simulations: int, timeout_seconds: float | None) -> None:
    if method not in METHODS:
        raise UnknownName("method", method, METHODS)
    if isinstance(n_simulations, bool) or not isinstance(n_simulations, int) or n_simulations < 1:
        raise InvalidInput(f"n_simulations must be a positive whole number, not {n_simulations!r}")
    if timeout_seconds is not None and not timeout_seconds > 0:
        raise InvalidInput(f"timeout_seconds must be positive, not {timeout_seconds!r}")


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
