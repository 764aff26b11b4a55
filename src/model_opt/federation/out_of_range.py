"""What a metric can be at all. A claim beyond it is no measurement, whoever signed it."""

import numpy as np

from model_opt.federation.envelope import Envelope
from model_opt.metrics import METRICS

LARGEST = 1e60
"""No metric at all is larger, known here or not."""


def out_of_range(envelope: Envelope) -> str | None:
    """What `envelope` claims that cannot have been measured, or None."""
    for name, columns in envelope.block.metrics.items():
        metric = METRICS.get(name)
        least, most = (metric.least, metric.most) if metric else (-LARGEST, LARGEST)
        moments = columns.moments
        if float(moments.min.min()) < least or float(moments.max.max()) > most:
            return f"{name[:80]!r} outside {least:g} to {most:g}"
        # No samples within [min, max] have more than n/4 times the squared range between them (Popoviciu, 1935).
        spread = np.minimum(moments.max - moments.min, 1e150)
        size = np.minimum(np.maximum(np.abs(moments.min), np.abs(moments.max)), 1e140)
        rounding = moments.n * (1e-9 * size) ** 2 + 1e-12
        if (moments.m2 > moments.n * spread**2 / 4 * (1 + 1e-6) + rounding).any():
            return f"{name[:80]!r} with more variance than its extremes allow"
    return None
