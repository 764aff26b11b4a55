"""Which options make measurements fail: a probability of success from counts, by the simplest explanation."""

import numpy as np
from numpy.typing import NDArray

from model_opt.search.encoding import Encoding

Array = NDArray[np.float64]

_DOUBT = 0.1  # what one more unexplained failure multiplies an option's chance by, where nothing with it has succeeded
_FLOOR = 1e-4


class FailureModel:
    """P(a plan can be measured), the least of its options' and pairs of options' chances.

    An option that was in f failed plans and s measured ones has chance (s + 1) / (s + f + 1) where s > 0; where it was
    never measured, 1 / 2 after one failure and a tenth of that for each more. A pair counts only the failures that no
    single never-measured option explains (two failures or more), and half as fast.
    """

    def __init__(self, encoding: Encoding) -> None:
        self._dims, self._widest = len(encoding.sizes), encoding.widest
        self._log = np.zeros(self._dims * self._widest)
        self._pairs: Array | None = None

    def update(self, failed: NDArray[np.int16], measured: NDArray[np.int16]) -> None:
        """Learns from all failed and all measured plans, both `[plans, decisions]`."""
        self._pairs = None
        if not len(failed):
            self._log[:] = 0.0
            return
        bad, good = self._one_hot(failed), self._one_hot(measured)
        fails, wins = bad.sum(axis=0), good.sum(axis=0)
        self._log = np.log(_chance(fails, wins))
        culprit = (fails >= 2) & (wins == 0)
        left = bad[~(bad[:, culprit] > 0).any(axis=1)]
        together, apart = left.T @ left, good.T @ good
        chance = np.where(together >= 1, np.sqrt(_chance(together, apart)), 1.0)
        if len(left) >= 2:
            self._pairs = np.log(chance)

    def log_success(self, codes: NDArray[np.integer]) -> Array:
        """Log of P(success), `[plans]`, of `codes` `[plans, decisions]`."""
        at = codes + np.arange(self._dims) * self._widest
        least = self._log[at].min(axis=1)
        if self._pairs is not None:
            least = np.minimum(least, self._pairs[at[:, :, None], at[:, None, :]].min(axis=(1, 2)))
        return np.asarray(least)

    def _one_hot(self, codes: NDArray[np.int16]) -> Array:
        """`[plans, decisions * widest]`"""
        out = np.zeros((len(codes), self._dims, self._widest))
        np.put_along_axis(out, codes[:, :, None].astype(np.int64), 1.0, axis=2)
        return out.reshape(len(codes), self._dims * self._widest)


def _chance(fails: Array, wins: Array) -> Array:
    never = np.where(fails > 0, np.maximum(0.5 * _DOUBT ** (fails - 1), _FLOOR), 1.0)
    return np.where(wins > 0, (wins + 1) / (wins + fails + 1), never)
