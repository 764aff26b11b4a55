"""The covariance of plans, compiled: additive, pairwise and product parts over per-decision tables.

    k(x, x') = w1 mean_d k_d + w2 mean_{d<e} k_d k_e + w3 prod_d k_d
    k_d = exp(-h_d [x_d != x'_d] - o_d |x_d - x'_d| / (m_d - 1))

The pairwise part comes from power sums: sum_{d<e} k_d k_e = ((sum k)^2 - sum k^2) / 2 (additive kernels: Duvenaud,
Nickisch and Rasmussen 2011, equation 8).
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[np.float64]
_LEAST = 1e-30  # of a k_d: it is divided by


def option_tables(h: Array, o: Array, sizes: NDArray[np.int64], widest: int) -> Array:
    """k_d for every pair of options, `[decisions, widest, widest]`."""
    steps = np.abs(np.arange(widest)[:, None] - np.arange(widest)[None, :])  # [widest, widest]
    reach = np.maximum(sizes - 1, 1)[:, None, None]
    told = np.exp(-h[:, None, None] * (steps > 0) - o[:, None, None] * np.minimum(steps / reach, 1.0))
    return np.asarray(np.maximum(told, _LEAST))


@njit(cache=True, nogil=True)
def cross(bases, base_of, decision, option, rows, tables, weights):  # type: ignore[no-untyped-def]
    """Covariances of one-option changes of a few plans with all rows, `[candidates, rows]`, in single precision.

    Candidate c is `bases[base_of[c]]` (`[bases, decisions]`) with `option[c]` at `decision[c]`, or unchanged where that
    is -1. `rows` is `[decisions, rows]`. A base costs O(rows x decisions), a change of it O(rows): where k_d becomes
    k_d + p, the sum S of all becomes S + p, and S^2 grows by 2 p S + p^2, so that the covariance is that of the base
    plus alpha + beta S + gamma prod, with alpha, beta and gamma by the row's option.
    """
    many, n, dims, widest = len(base_of), rows.shape[1], bases.shape[1], tables.shape[2]
    w1, w2, w3 = weights[0] / dims, weights[1] / max(dims * (dims - 1), 1), weights[2]
    used = np.zeros(len(bases), dtype=np.bool_)
    used[base_of] = True
    total = np.zeros((len(bases), n))
    product = np.ones((len(bases), n))
    whole = np.zeros((len(bases), n))
    for b in np.flatnonzero(used):
        squares = whole[b]
        for d in range(dims):
            table = tables[d, bases[b, d]]
            for j in range(n):
                t = table[rows[d, j]]
                total[b, j] += t
                squares[j] += t * t
                product[b, j] *= t
        for j in range(n):
            s = total[b, j]
            whole[b, j] = w1 * s + w2 * (s * s - squares[j]) + w3 * product[b, j]
    out = np.empty((many, n), dtype=np.float32)
    alpha, beta, gamma = np.empty(widest), np.empty(widest), np.empty(widest)
    for c in range(many):
        b, d = base_of[c], decision[c]
        if d < 0:
            for j in range(n):
                out[c, j] = whole[b, j]
            continue
        for r in range(widest):
            old, new = tables[d, bases[b, d], r], tables[d, option[c], r]
            p = new - old
            alpha[r] = w1 * p + w2 * (p * p - new * new + old * old)
            beta[r], gamma[r] = 2 * w2 * p, w3 * (new / old - 1)
        for j in range(n):
            r = rows[d, j]
            out[c, j] = whole[b, j] + alpha[r] + beta[r] * total[b, j] + gamma[r] * product[b, j]
    return out


@njit(cache=True, nogil=True)
def gram(rows, tables, weights):  # type: ignore[no-untyped-def]
    """Covariances of `rows`, `[decisions, rows]`, with one another, `[rows, rows]`."""
    dims, n = rows.shape
    pairs = max(dims * (dims - 1), 1)
    out = np.empty((n, n))
    for i in range(n):
        for j in range(i + 1):
            s1, s2, product = 0.0, 0.0, 1.0
            for d in range(dims):
                t = tables[d, rows[d, i], rows[d, j]]
                s1 += t
                s2 += t * t
                product *= t
            out[i, j] = weights[0] * s1 / dims + weights[1] * (s1 * s1 - s2) / pairs + weights[2] * product
            out[j, i] = out[i, j]
    return out


@njit(cache=True, nogil=True)
def gram_gradient(rows, tables, weights, sensitivity):  # type: ignore[no-untyped-def]
    """Chain rule through `gram`: sums over pairs of `sensitivity` (`[rows, rows]`, symmetric) times its derivatives.

    Returns `[3, decisions]`: by h_d, by o_d times (m_d - 1), and in the first columns of the last row (one each) by w1,
    w2 and w3; where there are fewer than three decisions the row is three wide all the same.
    """
    dims, n = rows.shape
    pairs = max(dims * (dims - 1), 1)
    out = np.zeros((3, max(dims, 3)))
    for i in range(n):
        for j in range(i + 1):
            s1, s2, product = 0.0, 0.0, 1.0
            for d in range(dims):
                t = tables[d, rows[d, i], rows[d, j]]
                s1 += t
                s2 += t * t
                product *= t
            g = sensitivity[i, j] * (1.0 if i == j else 2.0)
            out[2, 0] += g * s1 / dims
            out[2, 1] += g * (s1 * s1 - s2) / pairs
            out[2, 2] += g * product
            for d in range(dims):
                step = abs(rows[d, i] - rows[d, j])
                if step > 0:
                    t = tables[d, rows[d, i], rows[d, j]]
                    by_t = weights[0] / dims + weights[1] * 2 * (s1 - t) / pairs + weights[2] * product / t
                    out[0, d] -= g * t * by_t
                    out[1, d] -= g * t * by_t * step
    return out
