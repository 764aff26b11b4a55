"""What a newcomer sees: the first screen, and what common mistakes are answered with."""

import re
import sys

import pytest

from model_opt.cli.main import main

FILES = {
    "fine.py": "from torch import nn\n\n\ndef build():\n    return nn.Linear(4, 2)\n",
    "needs.py": "from torch import nn\n\n\ndef make(width):\n    return nn.Linear(width, 2)\n",
    "weights.py": "import torch\n\n\ndef make():\n    return torch.load('weights.pt')\n",
    "pair.py": "from torch import nn\n\n\ndef make():\n    return nn.Linear(4, 2), None\n",
    "typo.py": "from torch import nn\n\n\ndef make():\n    return {'model': nn.Linear(4, 2), 'example': None}\n",
    "broken.py": "def make(:\n    pass\n",
    "lacks.py": "import a_package_that_is_not_here\n",
    "shape.py": (
        "import torch\nfrom torch import nn\n\n\ndef make():\n"
        "    return {'model': nn.Linear(4, 2), 'example_input': torch.zeros(1, 5)}\n"
    ),
    "whole.py": (
        "import torch\nfrom torch import nn\n\n\ndef make():\n"
        "    return {'model': nn.Linear(4, 2), 'example_input': torch.zeros(1, 4)}\n"
    ),
    "alone.py": "from torch import nn\n\n\ndef make():\n    return nn.Linear(4, 2)\n",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    yield tmp_path
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)
    sys.path[:] = [entry for entry in sys.path if entry != str(tmp_path)]


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["model-opt", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_without_arguments_it_says_what_can_be_done_here(folder, monkeypatch, capsys):
    assert call(monkeypatch) == 0
    said = capsys.readouterr().out
    for needed in ("device", "model-opt optimize my_model.py:make", "model-opt report out", "model-opt ui", "--help"):
        assert needed in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimize", "fine.py"], "such as fine.py:build"),
        (["optimize", "fine.py:make"], "known: build"),
        (["optimize", "absent.py"], "there is no file absent.py"),
        (["optimize", "model.pt"], "a function that loads and returns it, and name that: my_model.py:make"),
        (["optimize", "needs.py:make"], "missing 1 required positional argument: 'width'"),
        (["optimize", "weights.py:make"], "weights.pt"),
        (["optimize", "pair.py:make"], "returned tuple, not a torch.nn.Module or a mapping with 'model'"),
        (["optimize", "typo.py:make"], "known: calibration_data, eval_fn, example_input"),
        (["optimize", "broken.py:make"], "SyntaxError"),
        (["optimize", "lacks.py:make"], "No module named 'a_package_that_is_not_here'"),
        (["optimize", "shape.py:make"], "Give an example_input= that the model takes, batch first"),
        (["optimize", "alone.py:make"], "give example_input="),
        (["optimize", "whole.py:make", "--exclude", "int9"], "int8"),
        (["optimize", "fine.py:build", "--max-accuracy-drop", "2"], "a share: 0.02 or 2% is two points"),
        (["report", "nowhere"], "neither a folder that model-opt optimize … --output has written nor a search"),
        (["ui", "--host", "example.org"], "no IP address"),
    ],
)
def test_a_mistake_is_answered_with_what_to_do(folder, monkeypatch, capsys, arguments, message):
    assert call(monkeypatch, *arguments) == 2
    printed = capsys.readouterr()
    told = [line for line in printed.err.splitlines() if not re.match(r"\[ *[\d.]+ s\]", line)]  # without the progress
    assert len(told) == 1 and message in told[0] and printed.out == ""
    assert "Traceback" not in printed.err
