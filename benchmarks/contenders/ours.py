"""This system: `optimize_auto`, a search within the row's minutes; the answer, and what its Pareto set holds beside it.

Each answer has a folder of its own, answer0 (what `optimize_auto` hands back), answer1, …
"""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from contenders.contender import Material, Run, main, relative_error, torch_run
from model_opt.autotuner import IntelligentOptimizer
from model_opt.autotuner.callbacks import LineProgress
from model_opt.autotuner.constraints import Constraints
from model_opt.autotuner.make_task import make_task
from model_opt.autotuner.result import CompressionResult
from model_opt.compression.evaluation.evaluator import CompressionEvaluator
from model_opt.compression.save_model import load_model
from model_opt.search.plan import Plan

ANSWERS = 8
BEYOND = 2.0
"""How far beyond the limit the answers beside ours may be, as its multiple: the peer's loss, which the limit is, was
told from rows that it was calibrated on."""
ROWS_BEYOND = 2
"""And as many held-out rows whose class changes: a limit of less than one row is luck, the test rows decide."""


def prepare(material: Material, out: Path, threads: int) -> None:
    fit = torch.from_numpy(material.fit)
    data = {"example_input": fit[: material.batch], "calibration_data": list(fit.split(8))}
    task = make_task(
        material.network(),
        **data,
        eval_fn=None,
        train_data=None,
        constraints=Constraints(max_accuracy_drop=1.0),
        seed=0,
    )
    if material.row["judged"] == "sqnr":
        task = replace(task, eval_fn=Fidelity(material, torch.cat(task.held_out)))
    began = time.monotonic()
    _, result = IntelligentOptimizer(out / "knowledge.json", callbacks=LineProgress()).optimize_auto(
        material.network(),
        method="mcts",
        n_simulations=60,
        timeout_seconds=material.row["minutes"] * 60,
        constraints={"max_accuracy_drop": material.row["limit"]},
        output=out / "answer0",
        eval_fn=task.eval_fn,
        **data,
    )
    (out / "search.json").write_text(json.dumps({"seconds": time.monotonic() - began}))
    evaluator = CompressionEvaluator(task)
    most = BEYOND * material.row["limit"]
    if material.row["judged"] != "sqnr":
        most = max(most, material.row["limit"] + ROWS_BEYOND / sum(len(batch) for batch in task.held_out))
    for number, plan in reversed([*enumerate(others(result, most), 1)]):  # closest first
        folder = out / f"answer{number}"
        folder.mkdir(exist_ok=True)
        evaluator.save(plan, folder / "model.pt")
        (folder / "plan.json").write_text(json.dumps(str(plan)))
    (out / "answer0" / "plan.json").write_text(json.dumps(str(result.plan)))


class Fidelity:
    """1 − `relative_error` on rows that nothing is fitted on."""

    def __init__(self, material: Material, rows: Tensor) -> None:
        self.batches = rows.split(material.batch)
        model = material.network()
        with torch.inference_mode():
            self.expected = torch.cat([model(batch) for batch in self.batches])

    def __call__(self, model: nn.Module) -> float:
        with torch.inference_mode():
            made = torch.cat([model(batch).float() for batch in self.batches])
        return 1 - relative_error(made.numpy(), self.expected.numpy())


def others(result: CompressionResult, most: float) -> list[Plan]:
    """Plans of the Pareto set that lose at most `most` and trade speed for closeness, the fastest first."""
    points = [p for p in result.pareto if p.accuracy_drop <= most and p.plan.choices]
    points.sort(key=lambda point: (-point.speedup, point.accuracy_drop))
    front = [p for i, p in enumerate(points) if all(p.accuracy_drop < q.accuracy_drop for q in points[:i])]
    plans = [point.plan for point in front if point.plan != result.plan]
    return [plans[round(place)] for place in np.linspace(0, len(plans) - 1, min(ANSWERS - 1, len(plans)))]


def load(material: Material, out: Path, threads: int) -> Run:
    return torch_run(load_model(out / "model.pt"))


if __name__ == "__main__":
    main(prepare, load)
