"""Whether what a caller gave is a number at all; Python's and NumPy's are, True and False are not."""

import math
from numbers import Integral, Real


def is_number(value: object) -> bool:
    """Whether `value` is a finite real number."""
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)


def is_whole(value: object) -> bool:
    """Whether `value` is a whole number."""
    return not isinstance(value, bool) and isinstance(value, Integral)
