"""What README, docs and cluster files say that can be run: commands, and blocks of Python.

A block that cannot be run says why in the page, in a comment right before it: `<!-- not run: REASON -->`.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CLUSTER_FILES = sorted(path for path in (ROOT / "cluster_configs").rglob("*") if path.is_file())

_BLOCK = re.compile(r"^(?:<!-- not run: (?P<why>.+?) -->\n+)?```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.M | re.S)
_INLINE = re.compile(r"`(model-opt [^`]+)`")
_IN_A_FILE = re.compile(r"(?:^|`|: )(model-opt \w[^`\n]*)", re.M)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A block of a page; `why_not` is why it cannot be run, empty where it can."""

    page: Path
    kind: str
    text: str
    why_not: str

    @property
    def commands(self) -> list[str]:
        """The lines that call `model-opt`, without their comments."""
        lines = [re.sub(r"\s+# .*$", "", line).rstrip() for line in self.text.splitlines()]
        return [line for line in lines if line.startswith("model-opt ")]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: Path, *kinds: str) -> list[Block]:
    """The blocks of a page, of these languages."""
    return [
        Block(page=page, kind=found["kind"], text=found["text"], why_not=" ".join((found["why"] or "").split()))
        for found in _BLOCK.finditer(page.read_text())
        if found["kind"] in kinds
    ]


def mentions(path: Path) -> list[str]:
    """Commands that a page names in its text, or that stand in another file."""
    text = path.read_text()
    if path.suffix == ".md":
        return [" ".join(found.split()) for found in _INLINE.findall(_BLOCK.sub("", text))]
    return _IN_A_FILE.findall(text)


def words(command: str) -> list[str]:
    """What follows `model-opt`, as a shell would split it."""
    return shlex.split(command, comments=True)[1:]
