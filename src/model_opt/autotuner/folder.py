"""The folder of a result: what its files are called, and where such folders lie."""

from collections.abc import Iterable
from pathlib import Path

RESULT_FILE = "result.json"
MODEL_FILE = "model.pt"
PROGRESS_FILE = "progress.jsonl"
"""There while an optimisation runs, and where it ended without a result."""


def folders(roots: Iterable[Path]) -> list[Path]:
    """The result folders in `roots`: themselves, and what lies at most two levels below; by path."""
    found = set()
    for root in roots:
        for level in (root, *root.glob("*/"), *root.glob("*/*/")):
            if any((level / name).is_file() for name in (PROGRESS_FILE, RESULT_FILE)):
                found.add(level)
    return sorted(found)
