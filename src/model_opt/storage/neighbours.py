"""Exact nearest neighbours among signatures, by brute force."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from model_opt.errors import InvalidInput
from model_opt.search.signature import Signature


class Neighbours:
    """Signatures by key, and their vectors as one matrix."""

    def __init__(self, signatures: Mapping[str, Signature]) -> None:
        self.by_key = dict(sorted(signatures.items()))
        self._values = list(self.by_key.values())
        self._matrix = np.array([signature.vector for signature in self._values], dtype=np.float32)

    def nearest(self, vector: NDArray[np.float32], k: int) -> list[tuple[Signature, float]]:
        """The `k` most similar to `vector` by cosine, best first, ties by key; fewer where there are fewer."""
        if not self._values:
            return []
        length = float(np.linalg.norm(vector))
        if vector.shape != self._matrix.shape[1:] or not np.isfinite(length) or not length:
            raise InvalidInput(f"a signature's vector is {self._matrix.shape[1:]} finite numbers, not all nought")
        similarity = self._matrix @ (vector / np.float32(length))
        # Rounded, so that ties are ties on every processor.
        order = np.argsort(-np.round(similarity, 6), kind="stable")[:k]
        return [(self._values[i], min(1.0, max(-1.0, float(similarity[i])))) for i in order]
