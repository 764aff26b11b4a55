"""The model of one plan, by whichever model_opt is on the path: `commits.py` compares what two commits make of it.

Only what the guide promises is imported, so that it runs on commits of any age. `OUT/plan.json` is {decision: option}.
"""

import json
from pathlib import Path

import torch

from contenders.contender import Material, Run, main, torch_run
from model_opt.autotuner import IntelligentOptimizer, load_model


def prepare(material: Material, out: Path, threads: int) -> None:
    plan, fit = json.loads((out / "plan.json").read_text()), torch.from_numpy(material.fit)
    _, result = IntelligentOptimizer(out / "knowledge.json").optimize_auto(
        material.network(),
        method="mcts",
        n_simulations=1,
        plans=[plan],
        constraints={"max_accuracy_drop": 1.0},
        example_input=fit[: material.batch],
        calibration_data=list(fit.split(8)),
        output=out,
    )
    if {choice.decision: choice.option for choice in result.plan.choices} != plan:
        raise SystemExit(f"the answer is {result.plan}: the plan cannot be had here, or is slower than the original")


def load(material: Material, out: Path, threads: int) -> Run:
    return torch_run(load_model(out / "model.pt"))


if __name__ == "__main__":
    main(prepare, load)
