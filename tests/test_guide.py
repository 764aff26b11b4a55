"""The user's guide, block by block, in one namespace, as a reader would type it.

The guide lies beside the repository, not in it. Only what needs the network or an hour is put in the place of the
original: `pretrained=True` becomes `weights=None` (weights would be downloaded); outside `make soak` the model is a
small one, the searches are short, and two fresh processes time the result instead of four.
"""

import os
import re
from pathlib import Path

import pytest
import torch
from torch import nn

GUIDE = Path(__file__).resolve().parents[2] / "shared" / "autotuner-guide.md"
SOAK = bool(os.environ.get("MODEL_OPT_SOAK"))


def blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def substituted(code: str) -> str:
    code = code.replace("pretrained=True", "weights=None")
    if SOAK:
        return code
    code = code.replace("models.resnet50(weights=None)", "small_network()")
    code = code.replace("n_simulations=50", "n_simulations=4")
    code = code.replace("torch.randn(1, 3, 224, 224)", "torch.randn(1, 3, 32, 32)")
    return code.replace("optimize_auto(model)", "optimize_auto(model, n_simulations=4)")


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    ).eval()


@pytest.mark.skipif(not GUIDE.exists(), reason=f"the guide is not beside the repository: {GUIDE}")
@pytest.mark.timeout(3600 if SOAK else 600)
def test_the_guides_code_runs_word_for_word(tmp_path, monkeypatch, capsys, short_searches):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    namespace = {"small_network": small_network}
    found = blocks(GUIDE.read_text())
    assert len(found) == 6
    for number, code in enumerate(found):
        exec(compile(substituted(code), f"guide block {number}", "exec"), namespace)
        if "result" in namespace:
            result = namespace["result"]
            assert result.compression_ratio > 0 and result.speedup > 0
            assert all(isinstance(technique.value, str) for technique in result.techniques)
    printed = capsys.readouterr().out
    assert re.search(r"Compression ratio: \d+\.\d\dx\nSpeedup: \d+\.\d\dx\nAccuracy drop: -?\d+\.\d\d%", printed)
    assert namespace["optimized_model"](torch.randn(1, 3, 224 if SOAK else 32, 224 if SOAK else 32)).shape[0] == 1


@pytest.mark.skipif(not GUIDE.exists(), reason="the guide is not beside the repository")
def test_the_components_that_the_guide_names_are_public():
    import model_opt.autotuner as autotuner

    named = re.findall(r"- \*\*`(\w+)`\*\*", GUIDE.read_text())
    assert len(named) == 5
    assert set(named) <= set(autotuner.__all__)
