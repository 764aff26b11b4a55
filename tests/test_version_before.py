"""What the version before has written is read, or refused with what to do."""

import math
import shutil
from pathlib import Path

import pytest
import torch

from model_opt.autotuner.result import CompressionResult
from model_opt.compression.save_model import load_model
from model_opt.errors import FleetError, InvalidInput
from model_opt.fleet import submission
from model_opt.report.page import report_page
from model_opt.report.view import find, of_result

BEFORE = Path(__file__).parent / "data" / "version-0.1"


@pytest.mark.parametrize("name", ["result.json", "fleet.json"])
def test_a_result_is_read_and_shown(name, tmp_path):
    shutil.copy(BEFORE / name, tmp_path / "result.json")
    result = CompressionResult.load(tmp_path)
    assert result.figures["speedup"].value > 0 and len(result.observations) > 2
    assert all(math.isfinite(value) for trial in result.observations for value in trial.metrics.values())
    assert CompressionResult.from_json(result.to_json()) == result
    assert 'id="pareto"' in report_page(of_result(result, "before"))


def test_a_saved_model_is_loaded():
    model = load_model(BEFORE / "model.pt")
    assert model(torch.randn(2, 1, 12, 12)).shape == (2, 10)


def test_a_search_that_was_kept_on_a_cluster_is_refused(tmp_path):
    shutil.copytree(BEFORE / "state", tmp_path / "state")
    with pytest.raises(FleetError, match=r"begun by another version of model_opt .* end it with that version"):
        submission.read(tmp_path / "state" / "night")
    with pytest.raises(InvalidInput, match="kept by another version of model_opt"):
        find("night", str(tmp_path / "state"))
