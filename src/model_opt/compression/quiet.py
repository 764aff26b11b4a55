"""Other libraries kept quiet: no progress bars on standard output, no warnings of theirs, no usage data sent."""

import contextlib
import importlib
import io
import logging
import os
import warnings
from collections.abc import Iterator

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


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, what is printed or warned is dropped; levels and streams are put back at the end."""
    loggers = [logging.getLogger(None if name == "root" else name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    sink = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(sink),
            contextlib.redirect_stderr(sink),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


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
