"""One optimisation, from the task to the result; each step is one call."""

import math
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from model_opt.atomic import write_together
from model_opt.autotuner.callbacks import Callbacks
from model_opt.autotuner.constraints import Constraints
from model_opt.autotuner.engine import CompressionTreeSearch, Found, MCTSEngine, Problem, original_of
from model_opt.autotuner.expected import expected_seconds
from model_opt.autotuner.finish import FinalAnswer, finish, pareto_front
from model_opt.autotuner.fleet_engine import Cluster, FleetEngine, measurer_on, reach
from model_opt.autotuner.folder import MODEL_FILE, RESULT_FILE
from model_opt.autotuner.make_task import NOISE
from model_opt.autotuner.pareto_points import ParetoPoint
from model_opt.autotuner.result import CompressionResult
from model_opt.autotuner.tally import of_tried
from model_opt.compression.evaluation.evaluator import CompressionEvaluator, Task
from model_opt.compression.evaluation.idle_options import IDLE_S, describe_idle
from model_opt.compression.evaluator_factory import evaluator_factory
from model_opt.compression.machine import Machine, inspect
from model_opt.compression.runtimes.runtime_module import taken_by
from model_opt.compression.save_model import load_model
from model_opt.compression.sign_model import sign_model
from model_opt.compression.space import build_space
from model_opt.compression.technique import techniques_of
from model_opt.errors import InvalidInput, MeasurementFailed, SaveFailed, StoreCorrupt, StoreError
from model_opt.federation.recall import Recalled, recall
from model_opt.federation.recorder import Recorder
from model_opt.federation.store import KnowledgeStore
from model_opt.measuring.child import MeasuringChild
from model_opt.measuring.kernels import compile_kernels
from model_opt.measuring.measurer import Measurer
from model_opt.measuring.variables import forking_workers
from model_opt.search.context import Context
from model_opt.search.evaluator import Description, Measurement, Outcome
from model_opt.search.objective import Objective
from model_opt.search.plan import Plan
from model_opt.search.space import SearchSpace

T = TypeVar("T")

METHODS = ("rule_based", "mcts", "hybrid")
SENSITIVITY_SHARE, SENSITIVITY_S, SENSITIVITY_BUDGET = 0.02, 15.0, 12
"""Of a time limit, the share, and at most the seconds, that are spent on what disturbs the outputs how much; nothing
for searches of fewer plans, which hardly get beyond their first ones."""
LEAST_SENSITIVITY_S = 5.0
"""In less nothing can be told of it."""
FINISH_SHARE = 0.3
FINISH_S = 40.0
"""Of a time limit, this share and at most this many seconds are kept for the final figures."""
GRACE_SHARE = 0.2
"""Of that time, what the last plans may take where they last longer than they should."""


@dataclass(frozen=True, kw_only=True)
class RunLimits:
    """How to search and for how long. `began` and `deadline` are monotonic seconds; a deadline of None is never."""

    method: str
    budget: int
    constraints: Constraints
    began: float
    deadline: float | None

    @property
    def explore_until(self) -> float | None:
        """When measuring ends, so that the final figures still fit in."""
        if self.deadline is None:
            return None
        return self.deadline - self._finish_s(self.deadline)

    @property
    def grace_s(self) -> float:
        """How long after `explore_until` a plan that was begun in time may still run."""
        return 0.0 if self.deadline is None else GRACE_SHARE * self._finish_s(self.deadline)

    def _finish_s(self, deadline: float) -> float:
        return min(FINISH_S, FINISH_SHARE * (deadline - self.began))


class Run:
    """One optimisation. Building it checks the user's plans and names, where it is this machine that measures; `go`
    measures, and has a cluster check them first."""

    def __init__(
        self,
        task: Task,
        limits: RunLimits,
        callbacks: Callbacks,
        *,
        plans: Sequence[Plan | Mapping[str, str]],
        freeze: Mapping[str, str] | None,
        exclude: Collection[str],
        cluster: Cluster | None = None,
    ) -> None:
        self._cluster = cluster
        self._here = cluster is None or cluster.is_local
        self._task, self._limits, self._callbacks = task, limits, callbacks
        self.signature = sign_model(task.model)
        self._plans, self._exclude, self._freeze = plans, exclude, freeze
        if self._here:
            trains, machine = task.train_data is not None, inspect(task.device)
            space = build_space(task.model, self.signature, machine, exclude=exclude, freeze=freeze, trains=trains)
            self._take(machine, space)
        self._phases: dict[str, float] = {"prepare": time.monotonic() - limits.began}
        self._at_work: Plan | None = None
        self._warnings = _warnings(task, limits.constraints)

    def go(self, store: KnowledgeStore, *, output: Path | None) -> tuple[nn.Module, CompressionResult]:
        """Measures, concludes, remembers; the model and the result are written to `output` if it is given."""
        for warning in self._warnings:
            self._callbacks.on_note(warning)
        compile_kernels()
        with tempfile.TemporaryDirectory(prefix="model-opt-") as folder:
            scratch = Path(folder)
            self._task = replace(self._task, keep=scratch)
            with self._forking(), self._measurer() as measurer:
                found, answer, recorder, described, recalled = self._measure(measurer, store)
            if not found.remembered:
                self._remember(store, recorder)
            path = scratch / MODEL_FILE
            path.write_bytes(answer.model)
            optimised = load_model(path)
            result = replace(self._result(found, answer, described, recalled), takes=taken_by(optimised))
            if output is not None:
                _save(output, answer.model, optimised, result)
            return optimised, result

    def _measure(
        self, measurer: Measurer, store: KnowledgeStore
    ) -> tuple[Found, FinalAnswer, Recorder, Description, Recalled]:
        described = self._timed("baseline", lambda: self._described(measurer))
        if not self._here:
            machine = measurer.call(CompressionEvaluator.machine, phase="prepare")
            self._take(machine, self._space(measurer))
        self._callbacks.on_baseline(described.baseline)
        for warning in described.warnings:
            self._warn(warning)
        objective = self._limits.constraints.objective(described.baseline)
        self._timed("what applies", lambda: self._leave_out(measurer))
        recalled = self._recall(store, _context(described), objective)
        recorder = Recorder(self.signature, _context(described))

        def learn(outcome: Outcome) -> None:
            if isinstance(outcome, Measurement):
                recorder.add(outcome)

        problem = Problem(
            measurer=measurer,
            space=self.space,
            signature=self.signature,
            machine=self.machine,
            objective=objective,
            noise=described.noise,
            original=original_of(described.baseline),
            first=self._first,
            known=recalled.plans,
            evidence=recalled.evidence,
            seed=self._task.seed,
            noise_db=self._sensitivity(measurer),
            explore_until=self._limits.explore_until,
            grace_s=self._limits.grace_s,
            expected=expected_seconds(
                self.signature,
                described.baseline["latency_ms"],
                kept=self._here,
            ),
            callbacks=self._callbacks,
            on_outcome=learn,
            on_plan=self._begin,
        )
        if problem.explore_until is not None:  # a plan that hangs may not take the final figures' time
            measurer.deadline = problem.explore_until + problem.grace_s
        found = self._timed("search", lambda: self._engine(described).run(problem))
        measurer.deadline, self._at_work = self._limits.deadline, None
        answer = self._timed("final figures", lambda: self._conclude(measurer, found, objective, described))
        return found, answer, recorder, described, recalled

    def _described(self, measurer: Measurer) -> Description:
        """What the evaluator says of the baseline; a cluster is started while its process starts."""
        if self._cluster is None or not self._here:
            return measurer.describe()
        with ThreadPoolExecutor(1) as beside:
            told = beside.submit(measurer.describe)
            try:
                reach(self._cluster)  # here: what Ray starts ends with the thread that started it
                return told.result()
            except BaseException:
                measurer.kill()
                raise

    def _space(self, measurer: Measurer, idle: Collection[tuple[str, str]] = ()) -> SearchSpace:
        return measurer.call(CompressionEvaluator.space, self._exclude, self._freeze, tuple(idle), phase="prepare")

    def _take(self, machine: Machine, space: SearchSpace) -> None:
        """What the device is and what can be done to the model on it; the user's plans are held against that."""
        self.machine, self.space = machine, space
        self._first = [self._user_plan(plan) for plan in self._plans]

    def _leave_out(self, measurer: Measurer) -> None:
        """Takes options out of the space that would change nothing in this model, but for those that the user named."""
        left = math.inf if self._limits.deadline is None else self._limits.deadline - time.monotonic()
        most_s = min(IDLE_S, SENSITIVITY_SHARE * left)
        try:
            idle = measurer.call(CompressionEvaluator.idle_options, most_s, phase="prepare")
            named = {(choice.decision, choice.option) for plan in self._first for choice in plan.choices}
            idle = {pair: reason for pair, reason in idle.items() if pair not in named}
            space = self._space(measurer, idle)
        except MeasurementFailed as error:
            self._callbacks.on_note(f"what would change nothing is found out as it is tried: {error}")
            return
        if not all(map(space.fits, self._first)):
            return
        self.space = space
        for line in describe_idle(idle):
            self._warn(line)

    def _warn(self, text: str) -> None:
        self._warnings.append(text)
        self._callbacks.on_note(text)

    def _sensitivity(self, measurer: Measurer) -> Mapping[tuple[str, str], float]:
        """What each option does to the outputs, measured layer by layer for a while; nothing for a short search."""
        if self._limits.method == "rule_based" or self._limits.budget < SENSITIVITY_BUDGET:
            return {}
        left = math.inf if self._limits.deadline is None else self._limits.deadline - time.monotonic()
        most_s = min(SENSITIVITY_S, SENSITIVITY_SHARE * left)
        if most_s < LEAST_SENSITIVITY_S:
            return {}
        try:
            return self._timed(
                "sensitivity",
                lambda: measurer.call(CompressionEvaluator.option_noise_db, most_s, phase="prepare"),
            )
        except MeasurementFailed as error:
            self._callbacks.on_note(f"the layers' sensitivity is not known: {error}")
            return {}

    def _engine(self, described: Description) -> CompressionTreeSearch | MCTSEngine | FleetEngine:
        budget = self._limits.budget
        self._callbacks.on_start(plans=self.space.total_plans, budget=budget)
        if self._limits.method == "rule_based":
            return CompressionTreeSearch()
        if self._cluster is None:
            return MCTSEngine(budget)
        known = described if self._here else None  # other machines have to time the original
        return FleetEngine(budget, self._cluster, replace(self._task, described=known))

    def _conclude(self, measurer: Measurer, found: Found, objective: Objective, described: Description) -> FinalAnswer:
        return finish(
            measurer,
            found,
            objective,
            task=self._task,
            threads=_context(described).threads,
            deadline=self._limits.deadline if found.ended != "interrupted" else time.monotonic(),
            search_s=time.monotonic() - self._limits.began,
            on_plan=self._work_on,
        )

    def _forking(self) -> AbstractContextManager[None]:
        """Workers of a cluster on this machine need not import all that measuring needs, each by itself."""
        return forking_workers() if self._cluster and self._here else nullcontext()

    def _measurer(self) -> Measurer:
        """What describes the model as it is, and times the answer: a process here, or one on the cluster."""

        def tell(name: str) -> None:
            self._callbacks.on_phase(name, self._at_work)

        if self._cluster is None or self._here:
            return MeasuringChild(evaluator_factory(self._task), deadline=self._limits.deadline, on_phase=tell)
        self._task = replace(self._task, threads=None)
        return measurer_on(self._cluster, self._task, deadline=self._limits.deadline, on_phase=tell)

    def _begin(self, plan: Plan) -> None:
        """`plan` is measured now: what the measuring process tells is told of it."""
        self._work_on(plan)
        self._callbacks.on_phase("prepare", plan)

    def _work_on(self, plan: Plan) -> None:
        self._at_work = plan

    def _recall(self, store: KnowledgeStore, context: Context, objective: Objective) -> Recalled:
        """What is known; a store that is damaged is refused before anything is measured, one that is away is told."""
        try:
            if self._limits.method == "mcts":
                store.rows([self.signature.key])  # nothing is asked of it, but it will be written to
                return Recalled()
            recalled = recall(store, self.signature, self.space, context, objective)
        except StoreCorrupt:
            raise
        except StoreError as error:
            self._callbacks.on_note(f"the knowledge base cannot be read, so the search starts from nothing: {error}")
            return Recalled()
        self._callbacks.on_note(recalled.describe())
        return recalled

    def _remember(self, store: KnowledgeStore, recorder: Recorder) -> None:
        try:
            count = self._timed("remember", lambda: recorder.record(store))
            self._callbacks.on_note(f"what was measured is in the knowledge base now: {count} plans, the original too")
        except StoreError as error:
            self._callbacks.on_note(f"what was measured could not be added to the knowledge base: {error}")

    def _user_plan(self, plan: Plan | Mapping[str, str]) -> Plan:
        made = plan if isinstance(plan, Plan) else self.space.plan(plan)
        if reason := self.space.why_not(made):
            raise InvalidInput(f"plan {made}: {reason}")
        return made

    def _timed(self, phase: str, step: Callable[[], T]) -> T:
        began = time.monotonic()
        self._callbacks.on_phase(phase, None)
        try:
            return step()
        finally:
            self._phases[phase] = time.monotonic() - began

    def _result(
        self, found: Found, answer: FinalAnswer, described: Description, recalled: Recalled
    ) -> CompressionResult:
        context = _context(described)
        bounds = {name: bound for name, bound in asdict(self._limits.constraints).items() if bound is not None}
        return CompressionResult(
            figures=answer.figures,
            plan=answer.plan,
            techniques=techniques_of(answer.plan),
            feasible=answer.feasible,
            constraints=bounds,
            method=self._limits.method,
            accuracy_source=described.accuracy_source,
            baseline=described.baseline,
            context=asdict(context) | {"key": context.key},
            signature=asdict(self.signature) | {"key": self.signature.key},
            pareto=with_answer(pareto_front(found), answer),
            observations=found.observed,
            seconds=self._phases | {"total": time.monotonic() - self._limits.began},
            ended=found.ended,
            notes=(*self._warnings, *((recalled.describe(),) if recalled.rows else ()), *answer.notes),
            knowledge=recalled.as_json() | {"weights": found.conclusion.source_weights},
            fleet=found.fleet,
            importance=of_tried(found.conclusion.importance, found.observed),
            tree=tuple(asdict(option) for option in found.conclusion.tree),
        )


def _context(described: Description) -> Context:
    if not isinstance(described.context, Context):
        raise TypeError(f"an evaluator of compression plans has a context, not {described.context!r}")
    return described.context


def _warnings(task: Task, constraints: Constraints) -> list[str]:
    """What the user should know before anything is measured."""
    noise = task.judged_on == NOISE and task.eval_fn is None
    said = "no calibration_data and no eval_fn: accuracy is agreement with the original on random noise"
    threads = torch.get_num_threads()
    fewer = f"torch was set to {threads} threads, but this process may use {task.threads} processors: so many are used"
    return [
        *filter(None, [constraints.warning]),
        *task.warnings,
        *([said] if noise else []),
        *([fewer] if task.threads and task.threads < threads and task.device == "cpu" else []),
    ]


def with_answer(points: Sequence[ParetoPoint], answer: FinalAnswer) -> tuple[ParetoPoint, ...]:
    """The front with the answer's final figures in the place of what the search saw of it."""
    speed = answer.figures["speedup"]

    def final(point: ParetoPoint) -> ParetoPoint:
        if point.plan != answer.plan or not point.plan.choices:
            return point
        return replace(
            point, speedup=speed.value, intervals=dict(point.intervals) | {"speedup": (speed.low, speed.high)}
        )

    return tuple(sorted(map(final, points), key=lambda point: -point.speedup))


def check_output(folder: Path) -> None:
    """Writes a file where `folder` is, or will be, and removes it: raises `InvalidInput` now, not after the search."""
    there = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(b"0")
    except OSError as error:
        raise InvalidInput(f"output={str(folder)!r} cannot be written: {error.strerror or error}") from error


def _save(folder: Path, model: bytes, optimised: nn.Module, result: CompressionResult) -> None:
    """Both files or neither; where `folder` takes neither they are kept in a temporary folder. Raises `SaveFailed`."""
    files = {MODEL_FILE: model, RESULT_FILE: result.to_json().encode()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_together(folder, files)
    except (InvalidInput, OSError) as error:
        raise SaveFailed(f"{error}. {_kept(files)}", model=optimised, result=result) from error


def _kept(files: Mapping[str, bytes]) -> str:
    kept = None
    try:
        kept = Path(tempfile.mkdtemp(prefix="model-opt-kept-"))
        write_together(kept, files)
    except (InvalidInput, OSError):
        if kept is not None:
            kept.rmdir()
        return "No temporary folder takes them either: this error's .model and .result hold them"
    return f"They were kept in {kept}: move them, or show them with model-opt show {kept}"
