"""The evaluator of compression plans: applies a plan, checks it, weighs it, times it beside the original, judges it."""

import math
import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model_opt.compression.evaluation.apply import apply_plan
from model_opt.compression.evaluation.idle_options import idle_options
from model_opt.compression.evaluation.judge import DataJudge, EvalFn, FunctionJudge, Judge, JudgeAs
from model_opt.compression.evaluation.kind import FloatTargets
from model_opt.compression.evaluation.losses import Drop
from model_opt.compression.evaluation.sensitivity import Sensitivity, option_noise_db, sensitivities
from model_opt.compression.evaluation.time_pair import Paired, time_pair, warm_up
from model_opt.compression.findings import Findings
from model_opt.compression.inputs import Inputs, batch_size, map_tensors, shapes
from model_opt.compression.interface import Interface, interface_of
from model_opt.compression.machine import Machine, inspect
from model_opt.compression.runtimes.declared import libraries
from model_opt.compression.runtimes.size import size_bytes
from model_opt.compression.save_model import load_model, save_model
from model_opt.compression.sign_model import sign_model
from model_opt.compression.space import build_space
from model_opt.compression.technique import Material
from model_opt.compression.widen import in_float32
from model_opt.processors import usable_processors
from model_opt.search.context import Context
from model_opt.search.evaluator import PART_NOTE, Description, Measurement, Phase, Purpose
from model_opt.search.objective import Objective
from model_opt.search.plan import Plan
from model_opt.search.space import SearchSpace

BLOCKS = {Purpose.EXPLORE: 5, Purpose.VERIFY: 10}
TIMING_S = {Purpose.EXPLORE: 2.5, Purpose.VERIFY: 5.0}
PREPARATION_NOISE = 0.02
"""Standard deviation of log speed-up between preparations of one plan, beyond what repeats in one process show."""


KEPT_MODELS = 4
RANDOM = "the model answers one input in different ways (dropout or noise in eval mode): so does what is made of it"
_ANY = Objective(metric="log_speedup", maximize=True)


@dataclass(frozen=True, kw_only=True)
class Task:
    """All that a measuring process needs. Travels by cloudpickle.

    `fit` are calibration batches for fitting, `held_out` those for judging; `labels` go with `held_out`, or are None.
    `interface` is what the model takes and gives, if that was looked at already. `judged_on` is the source that the
    result names when there is neither `eval_fn` nor labels; `judge_as` says what outputs are. `fallback` keeps the
    original in what is compiled, for the inputs that it refuses. `objective` tells from the baseline's figures what is
    wanted, None: nothing in particular. A plan that loses too much for certain after a first look is not judged on all
    the data; once a plan that holds every limit is known, one that certainly breaks one is not measured further.
    """

    model: nn.Module
    example: Inputs
    fit: Sequence[Inputs]
    held_out: Sequence[Inputs]
    sizes: Sequence[Inputs] = ()
    """A batch of each size that rows have, where they have several."""
    labels: Sequence[Tensor] | None = None
    interface: Interface | None = None
    judged_on: str = "fidelity"
    judge_as: JudgeAs = None
    targets: FloatTargets | None = None
    """What is told of targets that are no labels."""
    eval_fn: EvalFn | None = None
    train_data: Any = None
    fallback: bool = False
    objective: Callable[[Mapping[str, float]], Objective] | None = None
    threads: int | None = 1
    """None: as many as there are processors where it is measured."""
    seed: int = 0
    device: str = "cpu"
    keep: Path | None = None
    """A folder for the models of the fastest plans within the limits, so that none is made twice."""
    explore_blocks: int = BLOCKS[Purpose.EXPLORE]
    """Timing blocks of a plan that is explored: fewer are quicker and less sure."""
    described: Description | None = None
    """What another process on this device has found the original to be: it is not timed once more."""
    warnings: tuple[str, ...] = ()
    """What the user should know of the model and the data as they were handed in."""
    timing_lock: Any = field(default=None)
    """A lock with the context managers `exclusive()` and `shared()`, `join()` and `members()` (`actors.timing_lock`);
    None on a machine that nobody else measures on."""


class CompressionEvaluator:
    """An `Evaluator` of compression plans for one task, in a process of its own."""

    def __init__(self, task: Task) -> None:
        """Loads the model and judges the original once. Raises what the model or `eval_fn` raises."""
        self._threads = task.threads or usable_processors()
        torch.set_num_threads(self._threads)
        if task.timing_lock is not None:
            task.timing_lock.join()
        _seed(task.seed)
        self._task = replace(
            task,
            model=task.model.eval().to(task.device),
            example=_to(task.device, task.example),
            fit=[_to(task.device, batch) for batch in task.fit],
            held_out=[_to(task.device, batch) for batch in task.held_out],
            sizes=[_to(task.device, batch) for batch in task.sizes],
        )
        self._judge = _judge(self._task)
        self._material = Material(
            teacher=in_float32(self._task.model, self._task.example),
            original=self._task.model,
            example=self._task.example,
            fit=self._task.fit,
            held_out=self._task.held_out,
            sizes=self._task.sizes,
            signature=sign_model(self._task.model),
            machine=inspect(task.device),
            threads=self._threads,
            seed=task.seed,
            phase=lambda name: None,
            train_data=task.train_data,
            fallback=task.fallback,
            findings=Findings(interface=task.interface),
        )
        self._size_bytes = size_bytes(self._task.model)
        self._kept: dict[Plan, float] = {}
        self._held = False
        self._objective = _ANY

    def describe(self) -> Description:
        """Context, baseline and noise, which for a timing is that of the original against itself."""
        described = self._task.described or self._described()
        if self._task.objective is not None:
            self._objective = self._task.objective(described.baseline)
        return described

    def _described(self) -> Description:
        paired = self._time(self._task.model, BLOCKS[Purpose.VERIFY], TIMING_S[Purpose.VERIFY])
        ratios = paired.log_ratios
        return Description(
            context=self.context(),
            baseline={
                "latency_ms": float(np.median(np.concatenate([paired.baseline_ms, paired.plan_ms]))),
                "size_bytes": float(self._size_bytes),
                "accuracy": self._judge.baseline,
            },
            noise={"log_speedup": float(np.var(ratios, ddof=1)) / self._task.explore_blocks + PREPARATION_NOISE**2},
            accuracy_source=self._judge.source,
            warnings=(*self._judge.warnings, *([RANDOM] if interface_of(self._material).random else [])),
            seconds={"time": float((paired.baseline_ms.sum() + paired.plan_ms.sum()) / 1000)},
        )

    def context(self) -> Context:
        """Where this process measures."""
        task = self._task
        dtype = next((p.dtype for p in task.model.parameters()), torch.float32)
        return Context(
            device=self._material.machine.device_class,
            libraries=tuple(sorted(libraries().items())),
            dtype=str(dtype).removeprefix("torch."),
            threads=self._threads,
            batch=batch_size(task.example),
            input_shapes=shapes(task.example),
        )

    def measure(self, plan: Plan, purpose: Purpose, phase: Phase) -> Measurement:
        """Applies `plan`, weighs it, times it in turn with the original, and judges it: a first look, then the rest.

        A plan that is explored and clearly breaks a limit on size or speed is measured no further, once one that holds
        all limits is known (until then the least bad may be the answer).
        """
        clock = _Phases(phase)
        clock("prepare")
        model = self._kept_model(plan) if purpose is Purpose.VERIFY else None
        model = self._made(plan, clock) if model is None else model
        samples: dict[str, tuple[float, ...]] = {"log_size_ratio": (math.log(self._size_bytes / size_bytes(model)),)}
        may_drop = self._held and purpose is Purpose.EXPLORE and bool(plan.choices)
        known = {"log_size_ratio": (samples["log_size_ratio"][0], 0.0)}
        if may_drop and self._objective.hopeless(known):
            return _dropped(plan, samples, clock, "too large: neither timed nor judged")
        clock("wait")
        blocks = self._task.explore_blocks if purpose is Purpose.EXPLORE else BLOCKS[purpose]
        paired = self._time(model, blocks, TIMING_S[purpose], clock)
        samples |= {"log_speedup": tuple(paired.log_ratios.tolist()), "latency_ms": tuple(paired.plan_ms.tolist())}
        known["log_speedup"] = _mean_and_error(paired)
        if may_drop and self._objective.hopeless(known):
            why = ("clearly too slow: not judged", *_doubts(paired))
            return replace(_dropped(plan, samples, clock, *why), disturbed=_disturbed(paired))
        clock("accuracy")
        drop, notes = self._drop(model)
        self._keep(plan, model, float(np.median(paired.log_ratios)), drop, clock)
        clock("")
        samples |= {"accuracy_drop": (drop.value,), "accuracy_error": (drop.error,)}
        known["accuracy_drop"] = (drop.value, 0.0)
        self._held = self._held or (
            drop.whole and all(limit.certain(*known[limit.metric]) for limit in self._objective.limits)
        )
        return Measurement(
            plan=plan,
            samples=samples,
            seconds=clock.seconds,
            partial=not drop.whole,
            disturbed=_disturbed(paired),
            notes=(*notes, *_doubts(paired)),
        )

    def _accurate(self, drop: Drop) -> bool:
        return drop.whole and not self._objective.hopeless({"accuracy_drop": (drop.value, 0.0)})

    def machine(self) -> Machine:
        """What the device can do."""
        return self._material.machine

    def space(
        self,
        exclude: Collection[str],
        freeze: Mapping[str, str] | None,
        idle: Collection[tuple[str, str]],
    ) -> SearchSpace:
        """What can be done to the model on this device; see `build_space`."""
        return build_space(
            self._task.model,
            self._material.signature,
            self._material.machine,
            exclude=exclude,
            freeze=freeze,
            trains=self._task.train_data is not None,
            idle=idle,
        )

    def save(self, plan: Plan, path: Path) -> None:
        """Makes `plan`'s model and writes it to `path`."""
        save_model(self._made(plan, lambda name: None), path, recipe=recipe_of(plan))

    def option_noise_db(self, most_s: float) -> Mapping[tuple[str, str], float]:
        """(decision, option) → the signal-to-noise ratio to expect, from at most about `most_s` seconds of probing."""
        with self._working():
            return option_noise_db(self._material, most_s)

    def idle_options(self, most_s: float) -> Mapping[tuple[str, str], str]:
        """(decision, option) → why it would change nothing in this model; see `hopeless.idle_options`."""
        with self._working():
            return idle_options(self._material, most_s)

    def sensitivities(self) -> list[Sensitivity]:
        """Every layer or stage under every technique, most harmful first."""
        with self._working():
            return sensitivities(self._material)

    def _keep(self, plan: Plan, model: nn.Module, log_speedup: float, drop: Drop, phase: Phase) -> None:
        """Keeps the model of a plan that may be the answer; beyond `KEPT_MODELS` the slowest goes."""
        folder = self._task.keep
        if folder is None or not folder.is_dir() or not self._accurate(drop) or not plan.choices or plan in self._kept:
            return
        slowest = min(self._kept, key=lambda kept: self._kept[kept], default=None)
        if slowest is not None and len(self._kept) >= KEPT_MODELS:
            if self._kept[slowest] >= log_speedup:
                return
            kept_model(folder, slowest).unlink(missing_ok=True)
            del self._kept[slowest]
        phase("save")
        save_model(model, kept_model(folder, plan), recipe=recipe_of(plan))
        self._kept[plan] = log_speedup

    def _kept_model(self, plan: Plan) -> nn.Module | None:
        """The model of `plan` that an earlier measurement kept, here or in another process; None where none did."""
        folder = self._task.keep
        if folder is None or not kept_model(folder, plan).is_file():
            return None
        with self._working():
            return load_model(kept_model(folder, plan)).to(self._task.device)

    def _made(self, plan: Plan, phase: Phase) -> nn.Module:
        _seed(self._task.seed)
        self._material.phase = phase
        with self._working():
            return apply_plan(plan, self._material)

    def _time(self, model: nn.Module, blocks: int, at_most_s: float, phase: Phase = lambda name: None) -> Paired:
        task = self._task
        with self._working():
            warm_up(model, task.example)
        with self._timing():
            phase("time")
            return time_pair(task.model, model, task.example, blocks=blocks, at_most_s=at_most_s)

    def _drop(self, model: nn.Module) -> tuple[Drop, tuple[str, ...]]:
        with self._working():
            part = self._judge.part(model) if self._objective.limits else None
            if part and not part.whole and self._objective.hopeless({"accuracy_drop": (part.value, part.error)}):
                return part, (f"accuracy from {part.rows} rows: clearly beyond the limit",)
            drop = self._judge.whole(model)
            others = ", ".join(f"{of} {value:.3f}" for of, value in drop.others.items())
            said = f"{PART_NOTE}{drop.of}" + (f" (others: {others})" if others else "")
            return drop, ((said,) if drop.of else ())

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Nobody times inside the block; torch has this process's share of the threads: two on one processor wait for
        one another for a hundred times as long as they compute."""
        lock = self._task.timing_lock
        with lock.shared() if lock else nullcontext():
            torch.set_num_threads(max(1, self._threads // max(1, lock.members() if lock else 1)))
            yield

    @contextmanager
    def _timing(self) -> Iterator[None]:
        """Nobody else works inside the block; torch has all the task's threads."""
        lock = self._task.timing_lock
        with lock.exclusive() if lock else nullcontext():
            torch.set_num_threads(self._threads)
            yield


def kept_model(folder: Path, plan: Plan) -> Path:
    """Where an evaluator keeps the model of `plan`."""
    return folder / f"{plan.key}.pt"


def recipe_of(plan: Plan) -> dict[str, object]:
    """What a saved model says of itself."""
    return {"plan": {choice.decision: choice.option for choice in plan.choices}, "key": plan.key}


def _dropped(plan: Plan, samples: Mapping[str, tuple[float, ...]], clock: "_Phases", *notes: str) -> Measurement:
    """What is known of a plan that is measured no further."""
    clock("")
    return Measurement(plan=plan, samples=samples, seconds=clock.seconds, partial=True, notes=notes)


class _Phases:
    """Passes phases on and keeps how long each took, in seconds."""

    def __init__(self, phase: Phase) -> None:
        self._phase, self._current = phase, ""
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def __call__(self, name: str) -> None:
        now = time.perf_counter()
        if self._current:
            self.seconds[self._current] = self.seconds.get(self._current, 0.0) + now - self._since
        self._current, self._since = name, now
        if name:
            self._phase(name)


def _judge(task: Task) -> Judge:
    if task.eval_fn is not None:
        return FunctionJudge(task.eval_fn, task.model)
    return DataJudge(task.held_out, task.model, task.judged_on, task.labels, task.judge_as, task.targets)


def _mean_and_error(paired: Paired) -> tuple[float, float]:
    """Of the log speed-up that another preparation of the plan would have."""
    ratios = paired.log_ratios
    variance = float(np.var(ratios, ddof=1)) / len(ratios) if len(ratios) > 1 else 0.0
    return float(np.mean(ratios)), math.sqrt(variance + PREPARATION_NOISE**2)


def _disturbed(paired: Paired) -> frozenset[str]:
    return frozenset() if paired.quiet else frozenset({"log_speedup", "latency_ms"})


def _doubts(paired: Paired) -> tuple[str, ...]:
    notes = []
    if paired.drift > 0.05:
        notes.append(f"the original's own time drifted by {paired.drift:.0%} during the measurement")
    if not paired.quiet:
        notes.append("other programs disturbed all of the timing: its figures are those of a busy machine")
    return tuple(notes)


def _to(device: str, inputs: Inputs) -> Inputs:
    return map_tensors(lambda tensor: tensor.to(device), inputs)


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
