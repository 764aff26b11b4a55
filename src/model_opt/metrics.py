"""The metrics of compression: what each is, how far it carries over, and how it is shown. Everything that lists
metrics (what is kept, what may leave, what is believed of others, charts, tables) is made from this."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class Transfer(StrEnum):
    """To whom a figure says something."""

    EVERYBODY = "everybody"
    """It is the same wherever it is measured."""
    ALIKE = "alike"
    """It says something on other hardware and of other models, the more the more alike they are."""
    NOBODY = "nobody"
    """It is absolute: another context's says nothing."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One measured quantity of a plan.

    A sample lies within `least` and `most`. `floor` is the variance of one sample whatever repeats within one process
    show: preparations of one plan differ. `kept` says whether rows of knowledge have it, `whole_only` that a partial
    measurement's is not kept: it was told from a part of the data. `ratio` names the ratio that it is the logarithm of,
    `less` what such a ratio below one is called; both are empty otherwise. `label` stands beside axes.
    """

    name: str
    label: str
    transfers: Transfer
    least: float
    most: float
    floor: float = 0.0
    kept: bool = True
    whole_only: bool = False
    ratio: str = ""
    less: str = ""

    @property
    def exact(self) -> bool:
        """Without noise: origins tell the same figure, or somebody is wrong."""
        return self.transfers is Transfer.EVERYBODY

    def plain(self, value: float) -> float:
        """A value as people read it: the ratio, where it is the logarithm of one."""
        return math.exp(value) if self.ratio else value


_LEAST_LOG, _MOST_LOG = -math.log(1e4), math.log(1e6)

METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            name="log_size_ratio",
            label="times smaller",
            transfers=Transfer.EVERYBODY,
            least=_LEAST_LOG,
            most=_MOST_LOG,
            floor=1e-6,
            ratio="compression_ratio",
            less="larger",
        ),
        Metric(
            name="log_speedup",
            label="times faster",
            transfers=Transfer.ALIKE,
            least=_LEAST_LOG,
            most=_MOST_LOG,
            floor=0.05**2,
            ratio="speedup",
            less="slower",
        ),
        Metric(
            name="accuracy_drop",  # a relative error, without limit, where the model is no classifier
            label="accuracy lost",
            transfers=Transfer.ALIKE,
            least=-1.0,
            most=1e3,
            floor=0.002**2,
            whole_only=True,
        ),
        Metric(name="latency_ms", label="milliseconds", transfers=Transfer.NOBODY, least=1e-6, most=1e9),
        Metric(name="peak_memory_bytes", label="bytes", transfers=Transfer.NOBODY, least=0.0, most=2.0**60, kept=False),
    )
}
"""Name → metric, in the order in which they are told."""


def named(wanted: Callable[[Metric], bool]) -> tuple[str, ...]:
    """The names of the metrics that `wanted` is true of, in their order."""
    return tuple(name for name, metric in METRICS.items() if wanted(metric))


def plain(name: str, value: float) -> tuple[str, float]:
    """A metric's name and value as people read them: ("speedup", 5.1) for ("log_speedup", 1.63); others as they are."""
    metric = METRICS.get(name)
    return (metric.ratio or name, metric.plain(value)) if metric else (name, value)
