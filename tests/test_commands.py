"""Every `model-opt` command of README, docs and cluster files: parsed by the real program, and run where that needs
only this machine and seconds. What a page says that cannot be run is parsed, and its reason is printed."""

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from documented import CLUSTER_FILES, PAGES, ROOT, blocks, mentions, named, words
from model_opt.autotuner.sources import source_of
from model_opt.cli.main import app, main

SLOW = ("openvino", "onnxruntime", "aot_inductor", "torch_compile")
QUICK = ["--simulations", "2", "--timeout", "60", *(word for name in SLOW for word in ("--exclude", name))]
"""Makes a search short; of an option that is given twice the last counts."""
STANDS_FOR = {"ORIGIN": "ab" * 32, "torchvision:mobilenet_v3_small": "my_model.py:make"}
"""Of a word in a page that a reader replaces, and of a model that takes minutes: what is run in its place."""
SHELL = [block for page in PAGES for block in blocks(page, "bash")]
SAID = {(named(block.page), line): block.why_not for block in SHELL for line in block.commands}
NAMED = [(named(path), line) for path in [*PAGES, *CLUSTER_FILES] for line in mentions(path)]
RUNNABLE = [line for (_, line), why_not in SAID.items() if not why_not]
RUN = list({re.sub(r"\S+\.py:", "", line): line for line in reversed(RUNNABLE)}.values())[::-1]
"""What differs only in whose model file is named is run once, as the first page has it."""


def called(command: str) -> typer.Context:
    """The command's context, as the program itself parses it; raises what it would tell the user."""
    command_, rest = typer.main.get_command(app), words(command)
    while hasattr(command_, "commands") and rest:
        assert rest[0] in command_.commands, f"there is no command {rest[0]!r}: {command}"
        command_, rest = command_.commands[rest[0]], rest[1:]
    return command_.make_context(command_.name, rest)


@pytest.mark.parametrize(("page", "command"), list(dict.fromkeys([*SAID, *NAMED])), ids=lambda text: text)
def test_the_program_takes_every_command(page, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for word in words(command):
        if word.endswith(".mopt"):
            (tmp_path / word).touch()  # `import` wants the file to be there
    if command in ("model-opt optimize", "model-opt knowledge revoke"):
        with pytest.raises((SystemExit, typer.Exit)):  # named, not called: the command is there, and has help
            called(f"{command} --help")
        return
    context = called(command.replace("…", "my_model.py:make"))
    model = context.params.get("model", "$")
    if "$" not in model:
        source_of(model)


def test_why_what_is_not_run_is_not(capsys):
    """Printed, so that nobody thinks it was."""
    reasons = {(named(block.page), block.why_not) for page in PAGES for block in blocks(page, "bash", "python")}
    with capsys.disabled():
        for page, why in sorted(reasons):
            if why:
                print(f"\n{page}: a block is not run: {why}", end="")
    assert len(RUN) > 25


@pytest.mark.parametrize("page", [*PAGES, *CLUSTER_FILES], ids=named)
def test_every_file_that_is_named_exists(page):
    if page.suffix == ".json":
        return
    for path in re.findall(
        r"(?<![\w/.])((?:benchmarks|examples|cluster_configs|tests|src)/[\w/.-]*\w)", page.read_text()
    ):
        assert (ROOT / path).exists(), f"{named(page)} names {path}"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A user's folder: a model file as the page says, a first result as README says, and a bundle from elsewhere."""
    folder = tmp_path_factory.mktemp("user")
    model_file = blocks(ROOT / "docs/howto/my-model.md", "python")[0].text
    (folder / "my_model.py").write_text(model_file)
    (folder / "examples").mkdir()
    for name in ("my_model.py", "digits.py"):
        code = (ROOT / "examples" / name).read_text().replace("epochs: int = 6", "epochs: int = 1")
        (folder / "examples" / name).write_text(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_DATA_HOME", str(folder / "data"))
        patch.setenv("RAY_AUTH_MODE", "disabled")
        first = next(line for line in RUN if "optimize examples/my_model.py:make" in line)
        run(patch, first, *QUICK)
        run(patch, "model-opt knowledge export --out knowledge.mopt")
        for copy in ("out/digits", "out/tutorial", "out/second_digits", "experiments/one"):
            Path(copy).mkdir(parents=True)
            shutil.copy("out/result.json", copy)
        yield folder
    for name in ("my_model", "digits"):
        sys.modules.pop(name, None)


def run(patch, command, *more):
    """Calls the program as its entry point does; fails with what it printed."""
    given = [STANDS_FOR.get(word, word) for word in words(command)]
    patch.setattr(sys, "argv", ["model-opt", *given, *more])
    for name in ("my_model", "digits"):
        sys.modules.pop(name, None)  # two files are called so
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code, f"{command} ended with {ended.value.code}"


@pytest.mark.parametrize("command", RUN, ids=lambda text: text)
@pytest.mark.timeout(600)
def test_a_command_does_what_the_page_says(home, command, monkeypatch, capsys):
    monkeypatch.chdir(home)
    name, *rest = words(command)
    if name == "ui":
        serve(command, home)
        return
    more: list[str] = []
    if name in ("optimize", "search") and "--dry-run" not in rest:
        if "examples/my_model.py:make" in rest:
            return  # `home` has run it
        more = QUICK
    run(monkeypatch, command, *more)
    told = capsys.readouterr()
    assert told.out.strip() or told.err.strip()
    for option in {"--output", "--out", "-o", "--plot"} & set(rest):
        assert (home / rest[rest.index(option) + 1]).exists()


def serve(command, folder):
    """Starts a command that ends with Ctrl-C, waits for the address that it prints, and ends it."""
    more = [] if "--port" in command else ["--port", "0"]
    started = subprocess.Popen(
        [sys.executable, "-m", "model_opt.cli.main", *words(command), *more],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )  # fmt: skip
    try:
        assert "open http://127.0.0.1:" in started.stdout.readline(), started.stderr.read()
    finally:
        started.send_signal(signal.SIGINT)
        started.communicate(timeout=60)
