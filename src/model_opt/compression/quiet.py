"""Other libraries kept quiet: no progress bars on standard output, no warnings of theirs, no usage data sent."""

import contextlib
import importlib
import logging
import os
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

NOISY = (
    "nncf",
    "openvino",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "onnx_ir",
    "torch.onnx",
    "torchao",
    "root",
    "py.warnings",
)

_LOCK = threading.Lock()
_INSIDE: Counter[int] = Counter()
"""The threads inside `quiet`, each as often as it has entered."""
_UNDO = contextlib.ExitStack()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, what this thread prints or warns is dropped, and so is what threads do that are started meanwhile; levels
    and streams are put back once no thread is inside any more, in whatever order they leave."""
    me = threading.get_ident()
    with _LOCK:
        if not _INSIDE:
            _mute()
        _INSIDE[me] += 1
    try:
        yield
    finally:
        with _LOCK:
            _INSIDE[me] -= 1
            if not _INSIDE[me]:
                del _INSIDE[me]
            if not _INSIDE:
                _UNDO.close()


def _mute() -> None:
    """Levels, filters and streams for as long as a thread is inside; `_UNDO` puts them back."""
    _UNDO.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")
    for name in NOISY:
        logger = logging.getLogger(None if name == "root" else name)
        _UNDO.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL)
    loud = {thread.ident for thread in threading.enumerate()}
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        muted = _Muted(stream, loud)
        setattr(sys, name, muted)
        _UNDO.callback(_put_back, name, muted, stream)


def _put_back(name: str, muted: "_Muted", stream: TextIO) -> None:
    if getattr(sys, name) is muted:  # else somebody else has put another there, which is theirs
        setattr(sys, name, stream)


class _Muted:
    """A stream that passes on what the threads in `loud` write while they are not inside `quiet`."""

    def __init__(self, stream: TextIO, loud: set[int | None]) -> None:
        self._stream, self._loud = stream, loud

    def write(self, text: str) -> int:
        """Writes `text`, or drops it; how long it was."""
        me = threading.get_ident()
        return self._stream.write(text) if me in self._loud and me not in _INSIDE else len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Writes each of `lines`, or drops it."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def send_no_usage_data() -> None:
    """Stops OpenVINO and NNCF from sending usage data from this process: nobody asked the user."""
    os.environ.setdefault("NNCF_CI", "1")
    try:
        Telemetry = importlib.import_module("openvino_telemetry.main").Telemetry
    except ImportError:
        return
    for name in ("init", "start_session", "end_session", "send_event", "send_error", "send_stack_trace"):
        setattr(Telemetry, name, lambda self, *args, **kwargs: None)
    Telemetry.force_shutdown = lambda self, *args, **kwargs: None
