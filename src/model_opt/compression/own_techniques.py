"""Users' own techniques travel to the processes that measure."""

from collections.abc import Callable, Sequence

from model_opt.compression.evaluation.evaluate import CompressionEvaluator, Task
from model_opt.compression.technique import HANDLERS, OWN, Handler, register


def evaluator_factory(task: Task) -> Callable[[], CompressionEvaluator]:
    """Makes the evaluator of `task`, wherever it is called, with every technique that is registered here."""
    own = tuple(OWN.values())
    return lambda: _made(task, own)


def _made(task: Task, own: Sequence[tuple[Handler, str]]) -> CompressionEvaluator:
    for handler, before in own:
        if handler.decision not in HANDLERS:  # importing the user's module may have registered it
            register(handler, before=before)
    return CompressionEvaluator(task)
