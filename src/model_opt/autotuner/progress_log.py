"""A running optimisation on disk: one JSON line an event, so that others can watch and a crash loses nothing measured.

The file is there while the optimisation runs and where it ended without a result; `result.json` then takes its place.
"""

import contextlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from model_opt.atomic import write_atomically
from model_opt.autotuner.callbacks import PHASES, Callbacks
from model_opt.autotuner.folder import PROGRESS_FILE
from model_opt.errors import InvalidInput, SaveFailed
from model_opt.search.plan import Plan, read_plan
from model_opt.search.trial import Trial


class ProgressLog(Callbacks):
    """Appends what happens to `folder`/progress.jsonl. A disk that is full, or gone, costs the log and nothing else.

    A context manager around the optimisation: what ends with a result (also one that could not be saved here) leaves no
    log; what ends with an error leaves it, with the reason.
    """

    def __init__(self, folder: Path, facts: Mapping[str, object]) -> None:
        """`facts` are kept in the first line: `method`, `constraints`, `family`, …, JSON-like."""
        self._path, self._facts = folder / PROGRESS_FILE, dict(facts)
        self._began = time.monotonic()
        self._started = self._broken = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is None or isinstance(error, SaveFailed):
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
        elif self._started:
            self._write("end", {"why": f"{type(error).__name__}: {error}"})

    def on_baseline(self, figures: Mapping[str, float]) -> None:
        """Keeps the figures for the first line."""
        self._facts["baseline"] = dict(figures)

    def on_start(self, *, plans: int, budget: int) -> None:
        """Starts the file afresh."""
        head = {"plans": plans, "budget": budget, "pid": os.getpid(), "began_s": time.time()}
        self._began, self._started = time.monotonic(), True
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, self._line("start", head | self._facts).encode())
        except (OSError, InvalidInput):
            self._broken = True

    def on_phase(self, name: str, plan: Plan | None) -> None:
        """Keeps what is going on."""
        if self._started:
            self._write("phase", {"name": name, "plan": None if plan is None else str(plan)})

    def on_measurement(self, observed: Trial, *, settled: int, budget: int, best: Plan | None) -> None:
        """Keeps the measurement."""
        fields = {"settled": settled, "budget": budget, "best": None if best is None else asdict(best)}
        self._write("measurement", fields | {"observed": observed.as_fields()})

    def on_merge(self, status: Mapping[str, Any]) -> None:
        """Keeps the counts."""
        self._write("merge", {"status": dict(status)})

    def on_note(self, text: str) -> None:
        """Keeps the note, once the search has begun."""
        if self._started:
            self._write("note", {"text": text})

    def _write(self, event: str, fields: Mapping[str, object]) -> None:
        if self._broken:
            return
        try:
            with self._path.open("a") as file:
                file.write(self._line(event, fields))
        except OSError:
            self._broken = True

    def _line(self, event: str, fields: Mapping[str, object]) -> str:
        at_s = round(time.monotonic() - self._began, 4)
        return json.dumps({"event": event, "at_s": at_s, **fields}, default=str) + "\n"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a progress file says. `running` is whether its process lives; times are wall seconds and seconds since."""

    facts: Mapping[str, Any]
    observations: tuple[Trial, ...] = ()
    status: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    phase: str = ""
    best: Plan | None = None
    settled: int = 0
    at_s: float = 0.0
    running: bool = False


def read_progress(folder: Path) -> Progress:
    """Reads the progress file of `folder`; a last line that is half written is left out. Raises `InvalidInput`."""
    path = folder / PROGRESS_FILE
    try:
        lines = path.read_text().splitlines()
        events = [json.loads(line) for line in lines[:-1]] + _whole(lines[-1:])
        if not events or events[0]["event"] != "start":
            raise InvalidInput(f"{path} does not begin with a start")
        made = Progress(facts=events[0], running=_lives(int(events[0]["pid"])))
        for event in events[1:]:
            made = _after(made, event)
        return made
    except OSError as error:
        raise InvalidInput(f"no progress at {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(f"{path} is no progress file: {type(error).__name__}: {error}") from error


def _whole(last: list[str]) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in last]
    except ValueError:
        return []


def _after(before: Progress, event: Mapping[str, Any]) -> Progress:
    now = replace(before, at_s=float(event["at_s"]))
    match event["event"]:
        case "phase":
            plan, words = event["plan"], PHASES.get(event["name"], event["name"])
            return replace(now, phase=words if plan is None else f"{words}: {plan}")
        case "note":
            return replace(now, notes=(*now.notes, event["text"]))
        case "end":
            return replace(now, running=False, notes=(*now.notes, event["why"]))
        case "merge":
            return replace(now, status=event["status"], settled=int(event["status"]["settled"]))
        case "measurement":
            seen = Trial.from_fields(event["observed"])
            best = None if event["best"] is None else read_plan(event["best"])
            return replace(now, observations=(*now.observations, seen), settled=event["settled"], best=best)
    return now


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
