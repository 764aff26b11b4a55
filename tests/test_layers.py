"""What importing a part of the package costs: nothing heavy before it is used."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("imported", "absent"),
    [
        ("model_opt.search, model_opt.storage", {"torch", "ray", "neo4j", "chromadb", "redis", "pymongo"}),
        ("model_opt.federation.wire, model_opt.storage.open", {"torch", "ray", "neo4j", "chromadb"}),
        ("model_opt", {"torch", "ray", "numpy"}),
        ("model_opt.cli.main", {"torch", "ray", "neo4j", "chromadb", "openvino"}),
        ("model_opt.compression.evaluator_factory", {"numba", "scipy"}),
        ("model_opt.search.searcher, model_opt.cli.main", {"numba"}),
        ("model_opt.autotuner.result, model_opt.report.page, model_opt.cli.tables", {"torch", "ray", "numba"}),
        ("model_opt.autotuner", {"ray", "neo4j", "chromadb", "openvino", "onnxruntime", "torchao"}),
    ],
)
def test_importing_loads_nothing_heavy(imported, absent):
    code = f"import {imported}, sys; print(*sorted(set(sys.modules) & {absent!r}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not loaded
