"""The first plans, before there is anything to learn from."""

import numpy as np
from numpy.typing import NDArray

from model_opt.search.encoding import Encoding

Array = NDArray[np.float64]


def hypercube(encoding: Encoding, many: int, weights: Array, rng: np.random.Generator) -> NDArray[np.int16]:
    """`many` plans by Latin hypercube (McKay, Beckman and Conover 1979), `[plans, decisions]`; fewer if few are
    allowed.

    Each decision's options occur as often as `weights` (`[decisions, widest]`, rows sum to 1) say, in an order of their
    own. A plan that is not allowed has decisions redrawn until it is, or is left out.
    """
    dims = len(encoding.sizes)
    strata = (np.stack([rng.permutation(many) for _ in range(dims)], axis=1) + rng.random((many, dims))) / many
    codes = _inverse_cdf(weights, encoding.sizes, strata)
    return random_repair(encoding, codes, weights, rng)


def draw(encoding: Encoding, many: int, weights: Array, rng: np.random.Generator) -> NDArray[np.int16]:
    """Up to `many` independent allowed plans, each option with probability `weights`."""
    codes = _inverse_cdf(weights, encoding.sizes, rng.random((many, len(encoding.sizes))))
    return random_repair(encoding, codes, weights, rng)


def random_repair(
    encoding: Encoding, codes: NDArray[np.int16], weights: Array, rng: np.random.Generator
) -> NDArray[np.int16]:
    """`codes` with the decisions of broken rules redrawn, up to 20 times; what is still not allowed is dropped."""
    for attempt in range(20):
        broken = np.flatnonzero(~encoding.allowed(codes))
        if not len(broken):
            break
        rate = 0.2 if attempt < 15 else 0.7
        fresh = _inverse_cdf(weights, encoding.sizes, rng.random((len(broken), codes.shape[1])))
        change = rng.random(fresh.shape) < rate
        codes[broken] = np.where(change, fresh if attempt < 10 else 0, codes[broken])  # at last, leave things alone
    return codes[encoding.allowed(codes)]


def _inverse_cdf(weights: Array, sizes: NDArray[np.int64], uniform: Array) -> NDArray[np.int16]:
    edges = np.cumsum(weights, axis=1)  # [decisions, widest]
    codes = (uniform[:, :, None] >= edges[None]).sum(axis=2)
    return np.asarray(np.minimum(codes, sizes - 1), dtype=np.int16)
