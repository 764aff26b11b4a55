"""The first screens come at once: what takes seconds to import is imported where it computes."""

import json
import subprocess
import sys

import pytest
import typer

from model_opt.cli.main import app

HEAVY = {"torch", "ray", "numba", "scipy", "pandas", "plotly", "matplotlib", "openvino", "chromadb", "neo4j"}
SCREENS = """
import json, sys
from model_opt.cli.main import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["model-opt", *words]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, (words, ended.code)
print(json.dumps(sorted(name for name in sys.modules if "." not in name)))
"""


def imported(screens, folder):
    """What is imported once `model-opt` has been called with the words of each of `screens`, and what it printed."""
    command = [sys.executable, "-c", SCREENS, json.dumps(screens)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=120)
    assert ran.returncode == 0, ran.stderr
    *printed, modules = ran.stdout.splitlines()
    return set(json.loads(modules)), "\n".join(printed)


def commands(command, path=()):
    """The words of every command, and of every group."""
    yield list(path)
    for name, each in getattr(command, "commands", {}).items():
        yield from commands(each, (*path, name))


@pytest.mark.parametrize("words", [[], ["doctor"], ["doctor", "--json"], ["identity", "show"]], ids=" ".join)
def test_the_first_screens_import_nothing_that_computes(words, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    modules, printed = imported([words], tmp_path)
    assert "model_opt" in modules and printed.strip()
    assert not modules & HEAVY


def test_no_help_imports_anything_that_computes(tmp_path):
    screens = [[*path, "--help"] for path in commands(typer.main.get_command(app))]
    modules, printed = imported(screens, tmp_path)
    assert len(screens) > 25 and printed.count("Usage:") == len(screens)
    assert not modules & HEAVY
