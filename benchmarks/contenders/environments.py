"""An environment for each peer, made by the benchmark: its packages pinned, and what they share with ours not twice."""

import site
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path


def environment(name: str, pins: Sequence[str], cache: Path) -> Path:
    """The Python of environment `name` under `cache`, made if it is not there.

    It sees the packages of the environment that runs the benchmark where their versions are those that `pins` name,
    and has its own of the rest. Raises `CalledProcessError` where a package cannot be installed.
    """
    folder = cache / "environments" / name
    python = folder / "bin" / "python"
    done = folder / "pins.txt"
    if done.exists() and done.read_text().split() == list(pins):
        return python
    venv.create(folder, with_pip=False, clear=True)
    own = next((folder / "lib").glob("python*/site-packages"))
    (own / "beneath.pth").write_text("\n".join(site.getsitepackages()))
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), "install", "-q", *pins], check=True)
    done.write_text("\n".join(pins))
    return python
