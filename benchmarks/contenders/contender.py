"""What every contender's process does: prepare a model from a row's material, or serve one, timed on request.

    python -m contenders.NAME prepare MATERIAL OUT --threads 1
    python -m contenders.NAME serve MATERIAL OUT --threads 1

A serving process reads one JSON object a line: `{"time_s": 0.3}` is answered with the milliseconds of each call,
`{"outputs": PATH}` with the outputs on the test rows written to PATH; with `"of": "fit"`, on the calibration rows.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from contenders.networks import NETWORKS, TRANSFORMERS

Run = Callable[[np.ndarray], np.ndarray]
"""`[batch, …]` → `[batch, classes]`, float32."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """A row's folder: `row.json`, `weights.pt`, `fit.npy` (for calibration), `test.npy` (for the last word)."""

    folder: Path

    @cached_property
    def row(self) -> dict[str, Any]:
        """`network`, `batch`, `judged` ("agreement" or "sqnr"), `minutes`, and `limit`: what our search may lose."""
        return json.loads((self.folder / "row.json").read_text())

    @property
    def transformer(self) -> bool:
        return self.row["network"] in TRANSFORMERS

    @property
    def batch(self) -> int:
        return self.row["batch"]

    @cached_property
    def fit(self) -> np.ndarray:
        return np.load(self.folder / "fit.npy")

    @cached_property
    def test(self) -> np.ndarray:
        return np.load(self.folder / "test.npy")

    def network(self) -> nn.Module:
        model = NETWORKS[self.row["network"]]()
        model.load_state_dict(torch.load(self.folder / "weights.pt", weights_only=True))
        return model.eval()

    def batches(self, images: np.ndarray) -> list[np.ndarray]:
        """Whole batches of the row's size."""
        return [images[i : i + self.batch] for i in range(0, len(images) - self.batch + 1, self.batch)]


def outputs(run: Run, material: Material, images: np.ndarray) -> np.ndarray:
    return np.concatenate([run(batch).copy() for batch in material.batches(images)])


def relative_error(made: np.ndarray, expected: np.ndarray) -> float:
    """The norm of the error of the outputs, both `[rows, classes]`, as a part of what in them depends on the input.

    (Random networks return much the same for every image: without the mean over the rows, what ignores the image
    altogether can come within 14 dB.) Raises `ValueError` where nothing does.
    """
    varying = float(np.linalg.norm(expected - expected.mean(0)))
    if varying == 0:
        raise ValueError("the outputs of the original are the same for every row")
    return float(np.linalg.norm(made - expected)) / varying


def torch_run(model: nn.Module) -> Run:
    @torch.inference_mode()
    def run(images: np.ndarray) -> np.ndarray:
        return model(torch.from_numpy(images)).float().numpy()

    return run


def main(prepare: Callable[[Material, Path, int], None], load: Callable[[Material, Path, int], Run]) -> None:
    """The command line of a contender: `prepare(material, out, threads)` or `load(material, out, threads)`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("prepare", "serve"))
    parser.add_argument("material", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    material = Material(folder=arguments.material)
    if arguments.what == "prepare":
        prepare(material, arguments.out, arguments.threads)
    else:
        _serve(load(material, arguments.out, arguments.threads), material)


def _serve(run: Run, material: Material) -> None:
    example = np.ascontiguousarray(material.test[: material.batch])
    for _ in range(3):
        run(example)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        wanted = json.loads(line)
        if "outputs" in wanted:
            images = material.fit if wanted.get("of") == "fit" else material.test
            np.save(wanted["outputs"], outputs(run, material, images))
            print(json.dumps({"done": True}), flush=True)
        else:
            print(json.dumps(_timed(run, example, wanted["time_s"])), flush=True)


def _timed(run: Run, example: np.ndarray, time_s: float) -> list[float]:
    """Milliseconds of each call, after one that is not counted; at least three calls."""
    run(example)
    taken: list[float] = []
    end = time.perf_counter() + time_s
    while len(taken) < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        run(example)
        taken.append((time.perf_counter() - began) * 1000)
    return taken
