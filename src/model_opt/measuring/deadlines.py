"""How long each phase of a measurement may take before its process is killed."""

from collections.abc import Mapping
from dataclasses import dataclass

BASELINE_FACTOR = 10
"""A phase may take this many times what it took for the baseline, where that is more than its own limit."""


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    """Seconds that a phase may take. `start_s` covers opening the factory and describing the baseline; `wait_s` is for
    the phase "wait", in which an evaluator queues for the timing lock; `other_s` for phases that are not named here.
    What a process stands still for others' timing is not counted; after `pause_s` of it in one go it is told to go on,
    since whoever stopped it must be gone."""

    start_s: float = 900.0
    prepare_s: float = 300.0
    compile_s: float = 600.0
    time_s: float = 60.0
    accuracy_s: float = 600.0
    save_s: float = 300.0
    wait_s: float = 3600.0
    other_s: float = 600.0
    pause_s: float = 120.0

    def limit_s(self, phase: str, baseline_s: Mapping[str, float]) -> float:
        """The limit of `phase`: its own, or ten times what the baseline needed for it if that is longer."""
        own = getattr(self, f"{phase}_s", self.other_s)
        return float(max(own, BASELINE_FACTOR * baseline_s.get(phase, 0.0)))
