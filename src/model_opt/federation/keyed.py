"""Many rows under 64-bit keys, added to many others in one compiled pass. Such keys never leave a process."""

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from model_opt.federation.moments import MomentColumns

_Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class KeyedColumns:
    """`moments` of `keys`, both `[rows]`; keys are sorted, each occurs once."""

    keys: NDArray[np.uint64]
    moments: MomentColumns

    def __len__(self) -> int:
        return len(self.keys)


def add(a: KeyedColumns, b: KeyedColumns) -> KeyedColumns:
    """The samples of `a` and `b` together, which must share none: the same bits as `moments.merge` of every key.

    `add(a, b)` and `add(b, a)` are the same bits; adding is no join, so add nothing twice.
    """
    most = len(a) + len(b)
    keys, n, values = np.empty(most, dtype=np.uint64), np.empty(most, dtype=np.int64), np.empty((4, most))
    rows = _add(a.keys, a.moments.n, *_floats(a), b.keys, b.moments.n, *_floats(b), keys, n, values)
    mean, m2, low, high = values[:, :rows]
    return KeyedColumns(keys=keys[:rows], moments=MomentColumns(n=n[:rows], mean=mean, m2=m2, min=low, max=high))


def _floats(rows: KeyedColumns) -> tuple[_Floats, _Floats, _Floats, _Floats]:
    moments = rows.moments
    return moments.mean, moments.m2, moments.min, moments.max


@njit(cache=True, nogil=True)
def _add(ka, na, ma, sa, la, ha, kb, nb, mb, sb, lb, hb, keys, n, values):  # type: ignore[no-untyped-def]
    """Writes the sum of both into `keys`, `n` and `values` (mean, m2, min, max by row); returns how many rows."""
    i, j, row = 0, 0, 0
    while i < len(ka) or j < len(kb):
        from_a = j == len(kb) or (i < len(ka) and ka[i] <= kb[j])
        from_b = i == len(ka) or (j < len(kb) and kb[j] <= ka[i])
        if from_a and from_b:
            total = na[i] + nb[j]
            low, high = min(la[i], lb[j]), max(ha[i], hb[j])
            count_a, count_b, count = np.float64(na[i]), np.float64(nb[j]), np.float64(total)
            delta = mb[j] - ma[i]
            mean = ma[i] * (count_a / count) + mb[j] * (count_b / count)
            keys[row], n[row] = ka[i], total
            values[0, row] = min(max(mean, low), high)
            values[1, row] = sa[i] + sb[j] + delta * delta * (count_a * count_b / count)
            values[2, row], values[3, row] = low, high
        elif from_a:
            keys[row], n[row] = ka[i], na[i]
            values[0, row], values[1, row], values[2, row], values[3, row] = ma[i], sa[i], la[i], ha[i]
        else:
            keys[row], n[row] = kb[j], nb[j]
            values[0, row], values[1, row], values[2, row], values[3, row] = mb[j], sb[j], lb[j], hb[j]
        i += from_a
        j += from_b
        row += 1
    return row
