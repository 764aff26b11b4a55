"""The documentation: it builds without a warning, its code runs as it is written. Its commands: test_commands.py."""

import subprocess
import sys

import pytest

import documented
from documented import ROOT
from model_opt.compression import space, technique

PAGES = [page for page in documented.PAGES if page.is_relative_to(ROOT / "docs")]
NUMBERS = {"n_simulations=6": "n_simulations=2", "n_simulations=4": "n_simulations=2"}


def blocks(page):
    """The page's Python, without what it says cannot be run."""
    return [block.text for block in documented.blocks(page, "python") if not block.why_not]


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


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=named)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(600)
def test_the_code_of_a_page_runs_in_order(page, tmp_path, monkeypatch, as_before, short_searches):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    code = "\n".join(blocks(page))
    for usual, quick in NUMBERS.items():
        code = code.replace(usual, quick)
    exec(compile(code, str(page), "exec"), {"__name__": "__main__"})


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
