"""One figure of a search: plain Plotly, whose colours are names that the page resolves.

A colour "var:accent" is the page's `--accent`, so one figure serves light and dark. What a colour says is also said by
a marker, a pattern or a number.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Figure = dict[str, Any]
ACCENT, CHOSEN, MUTED, BAD, INK = "var:accent", "var:chosen", "var:muted", "var:bad", "var:ink"


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One figure, or the reason why there is none (`missing`); `table` says the same in words: heads and rows."""

    key: str
    title: str
    about: str
    figure: Figure | None = None
    missing: str = ""
    heads: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = field(default_factory=tuple)


def ratio_axis(title: str, values: Sequence[float]) -> Figure:
    """A logarithmic axis for positive `values`; over a decade it names 1, 2 and 5 only."""
    wide = bool(values) and max(values) > 8 * min(values)
    return {"title": {"text": title}, "type": "log"} | ({"dtick": "D2"} if wide else {})
