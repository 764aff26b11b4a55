"""Raw runs of the comparison, one line a run, kept in the repository and added to."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from searching.methods import METHODS, Answers
from searching.problems import problem

DATA = Path(__file__).parents[1] / "data" / "search"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run to be done."""

    method: str
    problem: str
    seed: int


def kept_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The runs of a file, one a line; ends the program with what to do where a line was cut off."""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            yield json.loads(line)
        except ValueError:
            sys.exit(f"{path}, line {number} is no run: delete that line, and --resume does the run again")


class Runs:
    """The answers of every run, in a folder of one file a method: `{"problem", "seed", "seconds", "rows"}` a line,
    where `rows` maps evaluations to the row of the recommended plan. What an answer is worth is read from the table."""

    def __init__(self, folder: Path = DATA, methods: Mapping[str, Callable[..., Answers]] = METHODS) -> None:
        self.folder, self._methods = folder, methods
        self._lines: dict[Job, dict[int, int]] = {}
        for path in sorted(folder.glob("*.jsonl")):
            for raw in kept_lines(path):
                job = Job(method=path.stem, problem=raw["problem"], seed=raw["seed"])
                self._lines[job] = {int(many): row for many, row in raw["rows"].items()}

    def __contains__(self, job: Job) -> bool:
        return job in self._lines

    def do(self, job: Job, checkpoints: Sequence[int]) -> None:
        """Does a run and keeps it; one that is there is not done again."""
        if job in self._lines:
            return
        start = time.process_time()
        rows = self._methods[job.method](problem(job.problem), job.seed, checkpoints)
        kept = {"problem": job.problem, "seed": job.seed, "seconds": round(time.process_time() - start, 2)}
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{job.method}.jsonl").open("a") as file:
            file.write(json.dumps(kept | {"rows": rows}) + "\n")
        self._lines[job] = rows

    def regrets(self, method: str, name: str, evaluations: int) -> np.ndarray:
        """Regret of every run of a method on a problem, `[seeds]`, by seed."""
        return problem(name).regrets[self.rows(method, name, evaluations)]

    def rows(self, method: str, name: str, evaluations: int) -> np.ndarray:
        """The recommended row of every run of a method on a problem, `[seeds]`, by seed."""
        jobs = sorted((j for j in self._lines if j.method == method and j.problem == name), key=lambda job: job.seed)
        rows = [self._lines[job][evaluations] for job in jobs if evaluations in self._lines[job]]
        return np.array(rows, dtype=np.int64)


def in_turn(methods: Iterable[str], problems: Sequence[str], seeds: Iterable[int]) -> Iterator[Job]:
    """Every run, seed by seed, so that a comparison cut short is still one of equals."""
    methods = list(methods)
    for seed in seeds:
        for name in problems:
            for method in methods:
                yield Job(method=method, problem=name, seed=seed)
