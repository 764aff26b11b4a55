"""A table that looks like compression: options make a model faster and cost accuracy, and some of them interact."""

from collections.abc import Mapping

import numpy as np

from model_opt.search import Decision, SearchSpace


class Table:
    """`value` is to be maximised, `cost` limited; leaving everything alone has 0 of both. Small enough to enumerate."""

    def __init__(self, seed: int, decisions: int = 6, options: int = 4) -> None:
        rng = np.random.default_rng(seed)
        shape = (decisions, options)
        self.space = SearchSpace(
            [Decision(f"d{i}", [str(o) for o in range(options)], ordered=i < 2) for i in range(decisions)]
        )
        self._gain, self._loss = rng.exponential(0.4, shape), rng.exponential(0.6, shape)
        self._gain[:2].sort(axis=1)
        self._loss[:2].sort(axis=1)
        self._gain[:, 0] = self._loss[:, 0] = 0.0
        self._pairs = rng.normal(size=(decisions, decisions, options, options)) * 0.15
        self._pairs[:, :, 0, :] = self._pairs[:, :, :, 0] = 0.0

    def metrics(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Value and cost of plans, `[plans, decisions]`."""
        columns = np.arange(codes.shape[1])
        value, cost = self._gain[columns, codes].sum(axis=1), self._loss[columns, codes].sum(axis=1)
        for i in columns:
            for j in range(i):
                value = value + self._pairs[i, j, codes[:, i], codes[:, j]]
        return value, cost

    def evaluate(self, plan: Mapping[str, str]) -> dict[str, float]:
        value, cost = self.metrics(np.array([[int(option) for option in plan.values()]]))
        return {"cost": float(cost[0]), "value": float(value[0])}

    def all_codes(self) -> np.ndarray:
        grids = np.meshgrid(*[np.arange(size) for size in self.space.sizes], indexing="ij")
        return np.stack([grid.ravel() for grid in grids], axis=1)

    def optimum(self, limit: float) -> float:
        value, cost = self.metrics(self.all_codes())
        return float(value[cost <= limit].max())
