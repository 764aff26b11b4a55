"""Puts this folder on the path, so that tests and measuring processes import `networks`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
