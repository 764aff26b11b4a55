"""Users' own techniques and runtimes travel to the processes that measure."""

from collections.abc import Callable, Sequence

from model_opt.compression.evaluation.evaluator import CompressionEvaluator, Task
from model_opt.compression.runtimes import declared
from model_opt.compression.runtimes.runtime import Runtime
from model_opt.compression.technique import HANDLERS, OWN, Handler, register


def evaluator_factory(task: Task) -> Callable[[], CompressionEvaluator]:
    """Makes the evaluator of `task`, wherever it is called, with all that was registered here."""
    techniques, runtimes = tuple(OWN.values()), tuple(declared.OWN.values())
    return lambda: _made(task, techniques, runtimes)


def _made(task: Task, techniques: Sequence[tuple[Handler, str]], runtimes: Sequence[Runtime]) -> CompressionEvaluator:
    for handler, before in techniques:  # importing the user's module may have registered them
        if handler.decision not in HANDLERS:
            register(handler, before=before)
    for runtime in runtimes:
        if runtime.name not in declared.RUNTIMES:
            declared.add_runtime(runtime)
    return CompressionEvaluator(task)
