"""Exact nearest neighbours among signatures, by brute force."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from model_opt.errors import InvalidInput
from model_opt.search.model_signature import Family, ModelSignature


class Neighbours:
    """Signatures by key, and their vectors as one matrix."""

    def __init__(self, signatures: Mapping[str, ModelSignature]) -> None:
        self.by_key = dict(sorted(signatures.items()))
        self._values = list(self.by_key.values())
        self._matrix = np.array([signature.vector for signature in self._values], dtype=np.float32)

    def nearest(self, vector: NDArray[np.float32], k: int) -> list[tuple[ModelSignature, float]]:
        """The `k` most similar to `vector` (of length 1) by cosine, best first, ties by key; or all that there are."""
        if not self._values:
            return []
        similarity = self._matrix @ vector
        # Rounded, so that ties are ties on every processor.
        distance = -np.round(similarity, 6)
        best = np.arange(len(distance))
        if k < len(distance):
            best = np.flatnonzero(distance <= np.partition(distance, k - 1)[k - 1])
        order = best[np.argsort(distance[best], kind="stable")[:k]]
        return [(self._values[i], min(1.0, max(-1.0, float(similarity[i])))) for i in order]


def check_query(query: ModelSignature | NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """The vector that is asked for, `[32]`, of length 1; raises `InvalidInput` for anything else and for k < 1."""
    if k < 1:
        raise InvalidInput(f"k is {k}: at least one neighbour has to be asked for")
    if isinstance(query, ModelSignature):
        return query.vector
    vector = np.asarray(query, dtype=np.float32)
    length = float(np.linalg.norm(vector))
    if vector.shape != _EXAMPLE.vector.shape or not np.isfinite(length) or not length:
        raise InvalidInput(f"a signature's vector is {len(_EXAMPLE.vector)} finite numbers, not all zero")
    return vector / np.float32(length)


_EXAMPLE = ModelSignature(family=Family.OTHER, parameters=0, layers=0, operators={}, stages=())
