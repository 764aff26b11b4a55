"""An evaluator that answers with garbage when it is asked to, on a machine whose clock jumps."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from made_up import Sleeping
from model_opt.search.evaluator import Measurement, Phase, Purpose
from model_opt.search.plan import Plan

GARBAGE: tuple[Any, ...] = (math.nan, math.inf, "fast", np.float32(1.0), None, 1e400, (1.0, "x"))


@dataclass(frozen=True)
class Misbehaving(Sleeping):
    """As `Sleeping`, which hangs and exits where a file says so; a file "garbage-N" spoils one measurement."""

    def measure(self, plan: Plan, purpose: Purpose, phase: Phase) -> Measurement:
        made = super().measure(plan, purpose, phase)
        for asked in sorted((self.folder or Path()).glob("garbage-*")):
            try:
                asked.unlink()
            except FileNotFoundError:
                continue
            value = GARBAGE[int(asked.name.partition("-")[2]) % len(GARBAGE)]
            return Measurement(plan=plan, samples={**made.samples, "latency_ms": cast(Any, (value,))})
        return made


JUMPING_CLOCK = """
import mmap, os, struct, time

_path = os.environ.get("MODEL_OPT_CHAOS_CLOCK")
if _path and os.path.exists(_path):
    with open(_path, "r+b") as _file:
        _ahead = mmap.mmap(_file.fileno(), 8)
    _now = time.time
    time.time = lambda: _now() + struct.unpack("d", _ahead[:8])[0]
"""
"""A `sitecustomize` for every process of a search: wall time is what the file says ahead of this machine's."""
