"""How much what others have measured counts here: age and hardware."""

import math
from collections.abc import Mapping

from model_opt.errors import InvalidInput
from model_opt.metrics import Transfer, named
from model_opt.search.context import Context

EXACT_METRICS = frozenset(named(lambda metric: metric.exact))
LOCAL_METRICS = frozenset(named(lambda metric: metric.transfers is Transfer.NOBODY))
SAME_FAMILY = 0.3
"""What a ratio of the same device class counts where libraries, threads or batch differ."""


def freshness(age_s: float, half_life_s: float) -> float:
    """2^(−age/half-life); what claims to come from the future is as fresh as now."""
    if not half_life_s > 0:
        raise InvalidInput(f"a half-life is positive, not {half_life_s}")
    return float(2.0 ** -min(max(age_s, 0.0) / half_life_s, 1000.0))


def similarities(here: Context, known: Mapping[str, Context], metric: str) -> dict[str, float]:
    """What each context counts `here`, by key: 1 for this one, `SAME_FAMILY` for its device class, else nothing.

    The device class is what stands before the first comma: a processor's or GPU's model.
    """
    return {key: _similarity(here, context, metric) for key, context in known.items()}


def _similarity(here: Context, there: Context, metric: str) -> float:
    if here == there:
        return 1.0
    if metric in LOCAL_METRICS:
        return 0.0
    same = _family(here.device) == _family(there.device) and here.dtype == there.dtype
    return SAME_FAMILY if same or metric in EXACT_METRICS else 0.0


def _family(device: str) -> str:
    return device.split(",")[0].strip()


def checked_share(what: str, share: float) -> float:
    """`share` if it is within 0 and 1; raises `InvalidInput`."""
    if not math.isfinite(share) or not 0 <= share <= 1:
        raise InvalidInput(f"{what} {share} is not within 0 and 1")
    return float(share)
