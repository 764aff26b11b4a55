"""A result is written whole or not at all, and is never lost: on a real full disk."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from networks import small_cnn

from model_opt.autotuner import IntelligentOptimizer
from model_opt.errors import InvalidInput

FULL_DISK = """
import os, sys, warnings
from pathlib import Path
import torch
from model_opt.autotuner import CompressionResult, IntelligentOptimizer, load_model
from model_opt.errors import SaveFailed
from networks import small_cnn

warnings.simplefilter("ignore")
torch.set_num_threads(1)
out = Path(sys.argv[1])
(out / "result.json").write_text("old")
example = torch.randn(4, 3, 32, 32)
try:
    IntelligentOptimizer(sys.argv[2]).optimize_auto(
        small_cnn(), "mcts", 2, constraints={"max_accuracy_drop": 1.0}, example_input=example,
        plans=[{"precision": "int8_static"}], output=out, calibration_data=[example],
        exclude=["openvino", "onnxruntime", "aot_inductor", "torch_compile"],
    )
except SaveFailed as error:
    assert "No space left on device" in str(error), error
    assert os.listdir(out) == ["result.json"] and (out / "result.json").read_text() == "old"
    kept = Path(str(error).partition("kept in ")[2].partition(":")[0])
    assert CompressionResult.load(kept).plan == error.result.plan
    torch.testing.assert_close(load_model(kept / "model.pt")(example), error.model(example))
    print("kept")
"""


def test_a_full_disk_loses_nothing(tmp_path):
    small, temporary = tmp_path / "small", tmp_path / "temporary"
    small.mkdir(), temporary.mkdir()
    mounted = 'mount -t tmpfs -o size=16k tmpfs $1 && TMPDIR=$2 exec $3 -c "$4" $1 $5'
    namespace = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    if subprocess.run([*namespace, 'mount -t tmpfs tmpfs "$1"', "-", small], capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here: needs user namespaces (unshare of util-linux)")
    arguments = [*namespace, mounted, "-", small, temporary, sys.executable, FULL_DISK, tmp_path / "kb.json"]
    made = subprocess.run(arguments, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=200)
    assert made.stdout.strip().endswith("kept"), made.stderr[-2000:]


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InvalidInput, match="cannot be written: Not a directory"):
        IntelligentOptimizer(tmp_path / "kb.json").optimize_auto(
            small_cnn(),
            example_input=torch.randn(4, 3, 32, 32),
            output=tmp_path / "file",
            calibration_data=[torch.randn(8, 3, 32, 32)],
        )
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
