"""Where a user's things are kept, also where the user has no home and may write nothing but the temporary folder."""

import os
import subprocess
import sys
from pathlib import Path

SHOW = """
from model_opt.folders import data_folder, home_variables, passing, state_folder
print(data_folder(), state_folder(), passing(), home_variables().get("HOME"), sep="\\n")
"""
NOBODY = """
import pwd
def unknown(uid):
    raise KeyError(uid)
pwd.getpwuid = unknown
"""


def shown(tmp_path: Path, *, first: str = "", **env: str) -> list[str]:
    """What a fresh process says whose temporary folder is `tmp_path`, and which has no home but the one in `env`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XDG_") and name != "HOME"}
    env = kept | {"TMPDIR": str(tmp_path)} | env
    made = subprocess.run([sys.executable, "-c", first + SHOW], env=env, capture_output=True, text=True, check=True)
    return made.stdout.splitlines()


def test_a_home_that_can_be_written_holds_everything(tmp_path: Path) -> None:
    data, state, note, home = shown(tmp_path, HOME=str(tmp_path))
    assert data == str(tmp_path / ".local/share/model_opt") and state == str(tmp_path / ".local/state/model_opt")
    assert note == home == "None"


def test_where_the_home_cannot_be_written_the_temporary_folder_holds_everything_and_that_is_said(
    tmp_path: Path,
) -> None:
    data, state, note, home = shown(tmp_path, HOME="/dev/null")
    own = tmp_path / f"model-opt-{os.getuid()}"
    assert (data, state) == (str(own / "data"), str(own / "state"))
    assert home == str(own / "home") and Path(home).is_dir()
    assert note.endswith(f"knowledge and identity are kept in {own / 'data'}, which may not last")


def test_a_user_whom_the_system_does_not_know_needs_no_home(tmp_path: Path) -> None:
    data, _, note, _ = shown(tmp_path, first=NOBODY)
    assert data == str(tmp_path / f"model-opt-{os.getuid()}" / "data") and "may not last" in note
