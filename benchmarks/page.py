"""The documentation's page of benchmarks: runs them and keeps what they print, and makes the page from that.

python benchmarks/page.py record merge -- --quick   # runs merge.py --json, keeps its output, renders
python benchmarks/page.py render                    # writes docs/benchmarks.md
"""

import argparse
import ast
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results", HERE.parent / "docs" / "benchmarks.md"


def record(name: str, arguments: list[str]) -> None:
    command = ["benchmarks/" + name + ".py", "--json", *arguments]
    began = time.time()
    run = subprocess.run([sys.executable, *command], cwd=HERE.parent, stdout=subprocess.PIPE, text=True, check=True)
    figures = json.loads(run.stdout[run.stdout.index("{") :] if "{" in run.stdout else run.stdout)
    rows = {"rows": figures.pop("rows")} if "rows" in figures else {}  # kept, and too many for the page
    kept = {
        "about": _about(name),
        "command": "python " + " ".join(command),
        "date": time.strftime("%Y-%m-%d", time.gmtime(began)),
        "seconds": round(time.time() - began, 1),
        "machine": f"{_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "figures": figures,
    } | rows
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def render(results: Path = RESULTS) -> str:
    """The page, from whatever was recorded; the same for the same files."""
    parts = [
        "# Benchmarks\n",
        "Made by `python benchmarks/page.py render` from what each benchmark printed. `record NAME` runs one again on "
        "your machine; figures of different machines are not to be compared.\n",
    ]
    recorded = sorted(path.stem for path in results.glob("*.json"))
    parts += [_section(name, json.loads((results / f"{name}.json").read_text())) for name in recorded]
    parts.append("More of them are in `benchmarks/`; each says what it measures with `--help`.")
    return "\n".join(parts).rstrip() + "\n"


def _section(name: str, kept: Mapping[str, Any]) -> str:
    head = f"## {name.replace('_', ' ').capitalize()}\n\n{kept['about']}\n\n"
    said = f"`{kept['command']}`, {kept['date']}, {kept['seconds']:g} s, on {kept['machine']}.\n\n"
    return head + said + _table(kept["figures"])


def _table(figures: Any) -> str:
    """Scalars as one table; each list of alike mappings as one of its own."""
    if isinstance(figures, list):
        return _rows(figures) if figures and isinstance(figures[0], dict) else f"{figures}\n"
    flat: list[tuple[str, str]] = []
    below = ""
    for key, value in figures.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            below += f"\n**{key}**\n\n{_rows(value)}"
        elif isinstance(value, dict) and value and all(isinstance(v, dict) for v in value.values()):
            below += f"\n**{key}**\n\n{_rows([{'': name} | v for name, v in value.items()])}"
        elif isinstance(value, dict):
            flat += [(f"{key}: {name}", _shown(one)) for name, one in value.items()]
        else:
            flat.append((key, _shown(value)))
    lines = "".join(f"| {name} | {value} |\n" for name, value in flat)
    return (f"| figure | value |\n| --- | ---: |\n{lines}" if flat else "") + below


def _rows(rows: list[dict[str, Any]]) -> str:
    heads = list(dict.fromkeys(key for row in rows for key in row))
    lines = "".join("| " + " | ".join(_shown(row.get(head, "")) for head in heads) + " |\n" for row in rows)
    return f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}\n{lines}"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value).replace("|", "\\|")


def _about(name: str) -> str:
    """The first sentence of the benchmark's own docstring."""
    path = HERE / f"{name}.py"
    text = ast.get_docstring(ast.parse(path.read_text())) if path.exists() else None
    return " ".join((text or "").split("\n\n")[0].split())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("name")
    recording.add_argument("arguments", nargs="*")
    commands.add_parser("render")
    given = parser.parse_args()
    if given.command == "record":
        record(given.name, given.arguments)
    PAGE.write_text(render())


if __name__ == "__main__":
    main()
