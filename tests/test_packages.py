"""What is built installs and runs elsewhere: the wheel and the sdist, each in an environment of its own."""

import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("model_opt/report/assets/page.css", "model_opt/report/assets/live.html", "model_opt/py.typed")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    made = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]
    return folder


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("pattern", ["*.whl", "*.tar.gz"])
def test_what_is_built_runs_elsewhere(built, pattern, tmp_path):
    (package,) = built.glob(pattern)
    home = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True, timeout=600)
    python = home / "bin" / "python"
    site = next((home / "lib").glob("python*/site-packages"))
    # The dependencies are those that are here; the package itself must not come from here.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--ignore-installed"]
    subprocess.run([*install, "--no-build-isolation", str(package)], check=True, timeout=900)
    told = "import model_opt, model_opt.search; print(model_opt.__file__, model_opt.__version__)"
    said = subprocess.run(
        [str(python), "-c", told], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=300
    )
    assert said.stdout.startswith(str(site)), said.stdout
    doctor = subprocess.run(
        [str(home / "bin" / "model-opt"), "doctor"], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert doctor.returncode == 0 and "device" in doctor.stdout, doctor.stderr
    for name in NEEDED:
        assert (site / name).is_file(), name


@pytest.mark.timeout(900)
def test_the_sdist_has_what_a_packager_needs_and_no_rubbish(built):
    (sdist,), (wheel,) = built.glob("*.tar.gz"), built.glob("*.whl")
    with tarfile.open(sdist) as file:
        names = [name.partition("/")[2] for name in file.getnames()]
    assert {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "src/model_opt/__init__.py"} <= set(names)
    assert not [name for name in names if name.startswith((".venv", "build/", "out/", "site/", "search/"))]
    inside = zipfile.ZipFile(wheel).namelist()
    assert all(name.startswith(("model_opt/", "model_opt-")) for name in inside)
    sources = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src/model_opt").rglob("*.py")}
    assert sources <= set(inside), "every module is there"
