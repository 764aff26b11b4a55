"""The documentation: it builds without a warning, its code runs as it is written, its commands exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from model_opt.cli.main import app
from model_opt.compression import space, technique

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
NEEDS_A_CLUSTER = {"fleet.md"}  # its block searches on `--address auto`; howto/my-cluster.md runs the same call here
NUMBERS = {"n_simulations=6": "n_simulations=2", "n_simulations=4": "n_simulations=2"}


def blocks(page, kind):
    return re.findall(rf"```{kind}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def named(page):
    return str(page.relative_to(ROOT / "docs"))


@pytest.fixture
def as_before():
    """What a page registers is unknown again afterwards; the product's own techniques are registered before."""
    assert space.HANDLERS is technique.HANDLERS
    order, handlers, own = list(technique.ORDER), dict(technique.HANDLERS), dict(technique.OWN)
    yield
    technique.ORDER[:] = order
    for now, then in ((technique.HANDLERS, handlers), (technique.OWN, own)):
        now.clear()
        now.update(then)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python") and p.name not in NEEDS_A_CLUSTER], ids=named)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(600)
def test_the_code_of_a_page_runs_in_order(page, tmp_path, monkeypatch, as_before):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    code = "\n".join(blocks(page, "python"))
    for usual, quick in NUMBERS.items():
        code = code.replace(usual, quick)
    exec(compile(code, str(page), "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_every_command_and_option_exists(page):
    main = typer.main.get_command(app)
    for line in "".join(blocks(page, "bash")).splitlines():
        words = shlex.split(line, comments=True)
        if not words or words[0] != "model-opt":
            continue
        command, rest = main, words[1:]
        while hasattr(command, "commands"):
            assert rest and rest[0] in command.commands, line
            command, rest = command.commands[rest[0]], rest[1:]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for word in rest:
            assert not word.startswith("-") or word in known, line


def test_the_site_builds_without_a_warning(tmp_path):
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert built.returncode == 0, built.stderr[-3000:]
    page = (tmp_path / "site/reference/autotuner.html").read_text()
    assert "optimize_auto" in page and "on_merge" in page


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES:
        assert f": {named(page)}\n" in navigation, f"{named(page)} is in no list of mkdocs.yml"


def test_the_page_of_benchmarks_is_what_was_recorded():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from page import PAGE, render
    finally:
        sys.path.pop(0)
    assert PAGE.read_text() == render(), "run python benchmarks/page.py render"
