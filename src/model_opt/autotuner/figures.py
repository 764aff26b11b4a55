"""Figures with their intervals, and in words: said the same way in tables, lines, pages and notebooks."""

from dataclasses import dataclass

MOST_SPAN = 4.0
"""An interval whose ends are further apart than this factor says nothing of use."""
UNCERTAIN = "too uncertain to say"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A value with its 95 % interval; `low` and `high` equal `value` where it is exact.

    `doubt` says why it is not to be relied on, empty where it is: then the interval covers all that was seen.
    """

    value: float
    low: float
    high: float
    doubt: str = ""

    @classmethod
    def exact(cls, value: float) -> "Figure":
        """A figure that is known for certain."""
        return cls(value=value, low=value, high=value)


def times(ratio: float) -> str:
    """A ratio: "5.10x"; from a hundred on without decimals."""
    return f"{ratio:.2f}x" if ratio < 99.995 else f"{ratio:,.0f}x"


def versus(ratio: float, less: str) -> str:
    """A ratio, turned over where it is below one: "5.10x", or "76.00x larger" for 1 / 76 with `less` "larger"."""
    return f"{times(1 / ratio)} {less}" if 0 < round(ratio, 2) < 1 or 0 < ratio < 0.005 else times(ratio)


def faster(ratio: float) -> str:
    """As "5.10x faster", or "1.25x slower"."""
    return _both(ratio, "faster", "slower")


def smaller(ratio: float) -> str:
    """As "3.90x smaller", or "76.00x larger"."""
    return _both(ratio, "smaller", "larger")


def lost(share: float) -> str:
    """As "0.40% lost", or "2.08% gained"."""
    return f"{-share:.2%} gained" if share <= -0.00005 else f"{abs(share):.2%} lost"


def is_uncertain(figure: Figure) -> bool:
    """Whether a ratio's interval is too wide to be of use."""
    return figure.high > MOST_SPAN * figure.low


def figure_text(figure: Figure) -> str:
    """A speed-up as a value: "5.10x", "1.25x slower", or "?" where it was not measured or is too uncertain."""
    return "?" if figure.doubt or is_uncertain(figure) else versus(figure.value, "slower")


def interval_text(figure: Figure, less: str = "slower") -> str:
    """The interval of a ratio: "4.20x … 6.10x" or "exact", after what makes it doubtful, as in "too uncertain to say
    (2.94x slower … 76.24x)"; ends below one are turned over, as by `versus`."""
    if figure.low == figure.high:
        return "exact"
    low, high = versus(figure.low, less), versus(figure.high, less)
    span = f"{low.removesuffix(f' {less}') if high.endswith(less) else low} … {high}"
    doubts = [UNCERTAIN] if is_uncertain(figure) else []
    doubts += [figure.doubt] if figure.doubt else []
    return f"{', '.join(doubts)} ({span})" if doubts else span


def duration(seconds: float) -> str:
    """As "45 s", "3 min", "2.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _both(ratio: float, more: str, less: str) -> str:
    said = versus(ratio, less)
    return said if said.endswith(less) else f"{said} {more}"
