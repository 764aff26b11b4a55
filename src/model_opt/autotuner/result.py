"""What an optimisation gives back: measured figures with their intervals, the plan, and all that was measured."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_opt.atomic import write_atomically
from model_opt.autotuner.figures import Figure
from model_opt.autotuner.folder import RESULT_FILE
from model_opt.autotuner.pareto_points import ParetoPoint
from model_opt.compression.technique import Technique
from model_opt.errors import InvalidInput
from model_opt.search.evaluator import PART_NOTE
from model_opt.search.plan import Plan, read_plan
from model_opt.search.trial import GIVEN, Trial

if TYPE_CHECKING:
    from pandas import DataFrame

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class CompressionResult:
    """The outcome of one optimisation. Every figure was measured on this device.

    `figures` has `speedup`, `compression_ratio`, `accuracy_drop` and `latency_ms`, and `peak_memory_ratio` where the
    system tells memory; a speed-up's interval is a 95 % prediction interval for a fresh process. `baseline` is the
    user's model: `latency_ms`, `size_bytes`, `accuracy`. `accuracy_source` is "eval_fn", "labelled data", "fidelity"
    (agreement with the original on calibration inputs) or "fidelity (noise)". `feasible` says whether the constraints
    hold. `knowledge` says what earlier measurements the search started from. `seconds` maps a phase to its
    length; `fleet` says who measured how much, where the search ran on a cluster. `importance` is each decision's share
    in what moves the figures; `tree` are the options of the tree's first two levels as the search last saw them
    (`search.searcher.OptionSummary` as mappings), empty where nothing was searched. `takes` says what the calls of a
    compiled model may hold, an argument a line; it is empty where that is what the original takes.
    """

    figures: Mapping[str, Figure]
    plan: Plan
    techniques: tuple[Technique, ...]
    feasible: bool
    constraints: Mapping[str, float]
    method: str
    accuracy_source: str
    baseline: Mapping[str, float]
    context: Mapping[str, Any]
    signature: Mapping[str, Any]
    pareto: tuple[ParetoPoint, ...]
    observations: tuple[Trial, ...]
    seconds: Mapping[str, float]
    ended: str
    notes: tuple[str, ...] = ()
    knowledge: Mapping[str, Any] = field(default_factory=dict)
    importance: Mapping[str, float] = field(default_factory=dict)
    tree: tuple[Mapping[str, Any], ...] = ()
    fleet: Mapping[str, Any] = field(default_factory=dict)
    takes: tuple[str, ...] = ()

    @property
    def measured(self) -> tuple[Trial, ...]:
        """The observations that were measured, failures included."""
        return tuple(seen for seen in self.observations if seen.purpose != GIVEN)

    @property
    def speedup(self) -> float:
        """Baseline latency ÷ the optimised model's."""
        return self.figures["speedup"].value

    @property
    def compression_ratio(self) -> float:
        """Baseline bytes ÷ the optimised model's, as saved."""
        return self.figures["compression_ratio"].value

    @property
    def original_ms(self) -> float:
        """The original's latency beside the optimised model's: that of the final figures, where there are any."""
        latency = self.figures.get("latency_ms")
        return self.baseline["latency_ms"] if latency is None else latency.value * self.speedup

    @property
    def accuracy(self) -> float | None:
        """The optimised model's, by `accuracy_source`; None where what lost most is another part of the answer."""
        notes = [note for seen in self.observations if seen.plan == self.plan for note in seen.notes]
        if any(note.startswith(PART_NOTE) for note in notes):
            return None
        return self.baseline["accuracy"] - self.accuracy_drop

    @property
    def accuracy_drop(self) -> float:
        """Accuracy lost, as a share: 0.01 is one point."""
        return self.figures["accuracy_drop"].value

    def summary(self) -> dict[str, Any]:
        """The few figures that scripts read: what `model-opt optimize --json` prints."""
        named = {name: asdict(self.figures[name]) for name in ("compression_ratio", "speedup", "accuracy_drop")}
        return named | {
            "techniques": [technique.value for technique in self.techniques],
            "plan": {choice.decision: choice.option for choice in self.plan.choices},
            "feasible": self.feasible,
            "accuracy_source": self.accuracy_source,
            "notes": list(self.notes),
        }

    def to_frame(self) -> "DataFrame":
        """Every settled plan as a row of a pandas data frame. Raises `MissingDependency` without pandas."""
        from model_opt.autotuner.display import display_frame

        return display_frame(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from model_opt.autotuner.display import display_html

        return display_html(self)

    def to_json(self) -> str:
        """The whole result; `from_json` reads it back equal."""
        fields = {"schema": SCHEMA} | asdict(self)
        fields["observations"] = [trial.as_fields() for trial in self.observations]
        return json.dumps(fields, indent=2, default=str)

    @classmethod
    def from_json(cls, text: str) -> "CompressionResult":
        """Reads what `to_json` wrote. Raises `InvalidInput` for anything else."""
        try:
            raw = json.loads(text)
            if raw.pop("schema") != SCHEMA:
                raise InvalidInput("this result was written by another version of model_opt")
            raw["figures"] = {name: Figure(**figure) for name, figure in raw["figures"].items()}
            raw["plan"] = read_plan(raw["plan"])
            raw["techniques"] = tuple(map(Technique, raw["techniques"]))
            raw["pareto"] = tuple(map(ParetoPoint.from_fields, raw["pareto"]))
            raw["observations"] = tuple(map(Trial.from_fields, raw["observations"]))
            raw["tree"], raw["takes"] = tuple(raw.get("tree", ())), tuple(raw.get("takes", ()))
            return cls(**raw | {"notes": tuple(raw["notes"])})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, InvalidInput):
                raise
            raise InvalidInput(f"not a result of model_opt: {type(error).__name__}: {error}") from error

    def save(self, folder: str | Path) -> Path:
        """Writes `result.json` into `folder`, made if it is not there; nothing is left half written.

        The optimised model is written beside it by `model_opt.save`.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        write_atomically(target / RESULT_FILE, self.to_json().encode())
        return target

    @classmethod
    def load(cls, folder: str | Path) -> "CompressionResult":
        """Reads a result folder, or its `result.json`. Raises `InvalidInput` where there is none."""
        path = Path(folder)
        path = path / RESULT_FILE if path.is_dir() else path
        try:
            return cls.from_json(path.read_text())
        except OSError as error:
            raise InvalidInput(
                f"no result at {path}: {error.strerror}. Make one with model-opt optimize … --output"
            ) from (error)
