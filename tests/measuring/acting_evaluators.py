"""Evaluators that do to their process whatever a plan's option says."""

import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from model_opt.errors import InvalidInput, MeasurementFailed, TechniqueError, UnknownName
from model_opt.measuring.timing_lock import TimingLock
from model_opt.search.evaluator import Description, Measurement, Phase, Purpose
from model_opt.search.plan import Choice, Plan


def act(action: str) -> Plan:
    return Plan((Choice(decision="act", option=action),))


@dataclass
class Acting:
    """Performs the option of the decision "act"."""

    folder: Path

    def describe(self) -> Description:
        return Description(seconds={"accuracy": 0.01}, more={"pid": os.getpid(), "cwd": str(Path.cwd())})

    def measure(self, plan: Plan, purpose: Purpose, phase: Phase) -> Measurement:
        phase("prepare")
        getattr(self, f"_{plan.option('act') or 'nothing'}")(phase)
        return Measurement(plan=plan, samples={"latency_ms": (1.0, 2.0)}, seconds={"time": 0.5}, notes=(str(purpose),))

    def save(self, plan: Plan, path: Path) -> int:
        return path.write_text(str(plan))

    def refuse(self) -> None:
        raise InvalidInput("not so")

    def raise_unknown(self) -> None:
        raise UnknownName("decision", "x", ["y"])

    def _nothing(self, phase: Phase) -> None:
        phase("time")
        phase("accuracy")

    def _illegal(self, phase: Phase) -> None:
        raise TechniqueError("depthwise layers cannot be pruned")

    def _wrong(self, phase: Phase) -> None:
        raise MeasurementFailed("outputs are not finite")

    def _error(self, phase: Phase) -> None:
        raise KeyError("weights")

    def _leave(self, phase: Phase) -> None:
        sys.exit(3)

    def _exit(self, phase: Phase) -> None:
        print("last words", flush=True)
        os._exit(7)

    def _segfault(self, phase: Phase) -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        ctypes.string_at(0)

    def _killed(self, phase: Phase) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def _memory(self, phase: Phase) -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, resource.RLIM_INFINITY))
        kept = []
        while True:
            kept.append(bytearray(1 << 28))

    def _cuda_memory(self, phase: Phase) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")

    def _bad_alloc(self, phase: Phase) -> None:
        os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
        os.abort()

    def _sleep(self, phase: Phase) -> None:
        phase("accuracy")
        while True:
            time.sleep(60)

    def _work(self, phase: Phase) -> None:
        """As a worker that may be paused, until the file `go` is there."""
        with TimingLock(folder=self.folder).shared():
            self._fork(phase)
            phase("accuracy")
            (self.folder / "working").touch()
            while not (self.folder / "go").exists():
                time.sleep(0.01)

    def _time_alone(self, phase: Phase) -> None:
        with TimingLock(folder=self.folder).exclusive():
            (self.folder / "timing").touch()
            self._sleep(phase)

    def _hang(self, phase: Phase) -> None:
        """In C, holding the interpreter's lock: no Python thread or signal handler of this process runs any more."""
        (self.folder / "hung").touch()
        ctypes.PyDLL(None).pause()

    def _talk(self, phase: Phase) -> None:
        chunk = b"x" * 999_999 + b"\n"
        for _ in range(1000):
            os.write(1, chunk)

    def _fork(self, phase: Phase) -> None:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (self.folder / "grandchild").write_text(str(child.pid))

    def _twice(self, phase: Phase) -> None:
        os.fork()

    def _signal(self, phase: Phase) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    def _odd(self, phase: Phase) -> None:
        raise type("Odd", (Exception,), {"__init__": lambda self: Exception.__init__(self, lambda: 0)})()
