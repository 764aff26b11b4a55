"""Is int8 offered, right and of use on this processor, and with fewer instruction sets? And what becomes of digits?

python benchmarks/processors.py [--quick] [--json]

The digits network is trained, and int8 of every runtime compared with torch in processes of their own: as they are, and
with instruction sets capped by `ONEDNN_MAX_CPU_ISA` and `ATEN_CPU_CAPABILITY`. `obeys` says whether a cap changed what
runs: kernels have other names, or take half as long again, than without; a cap at what the processor has anyway changes
nothing, and ONNX Runtime has no means to cap it. Then `examples/digits.py` runs, as it is and
capped to AVX2. Goals: int8 offered everywhere and at least 20 dB; digits at least 5 times faster and 5 times smaller
within a point, in both. --quick has no compiler, one cap, and one short run of digits.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from digits import make_network, read_digits, train

from model_opt.compression.evaluation.apply import apply_plan
from model_opt.compression.inputs import Inputs, call
from model_opt.compression.machine import inspect
from model_opt.compression.runtimes.openvino import OpenVinoModule, compiled_for
from model_opt.compression.sign_model import sign_model
from model_opt.compression.signal_to_noise import signal_to_noise_db
from model_opt.compression.space import build_space
from model_opt.compression.technique import Material, handler_of
from model_opt.errors import ModelOptError
from model_opt.search.plan import Choice, Plan

HERE = Path(__file__).resolve()
CAPS: Mapping[str, Mapping[str, str]] = {
    "none": {},
    "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    "SSE4.1": {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"},
}
"""What instruction sets are capped at → the environment that asks for it."""
WITHOUT_MEANS = "onnxruntime"
RUNTIMES = ("torch", "openvino", "onnxruntime", "aot_inductor")
SLOWER = 1.5
ROUNDS, BATCH = 60, 8


def one(folder: Path, runtime: str) -> dict[str, Any]:
    """What int8 and float32 of `runtime` are in this process: closeness to torch in decibels, milliseconds, kernels."""
    model, fit, test = torch.load(folder / "network.pt", weights_only=False)
    torch.set_num_threads(1)
    material = _material(model, fit)
    space = build_space(model, material.signature, material.machine)
    chosen = {name: _plan(runtime, name) for name in ("fp32", "int8_static")}
    row: dict[str, Any] = {"offered": space.why_not(chosen["int8_static"]) is None}
    try:
        made = {name: apply_plan(plan, material) for name, plan in chosen.items()}
    except ModelOptError as error:
        return row | {"failed": str(error)[:200]}
    with torch.no_grad():
        outputs = [call(made["int8_static"], rows) for rows in test.split(BATCH)[:-1]]
        wanted = [model(rows) for rows in test.split(BATCH)[:-1]]
    row["int8_db"] = round(signal_to_noise_db(torch.cat(wanted), torch.cat(outputs)), 1)
    took = milliseconds({"torch": model, **made}, test[:BATCH])
    row |= {"fp32_ms": took["fp32"], "int8_ms": took["int8_static"]}
    row["int8_speedup"] = took["torch"] / took["int8_static"]
    return row | {"kernels": "" if runtime == WITHOUT_MEANS else kernels(made["int8_static"], test[:BATCH])}


def _plan(runtime: str, precision: str) -> Plan:
    wanted = {"clean": "fused", "precision": precision, "runtime": runtime}
    handlers = {name: handler_of(name)[0] for name in wanted}
    return Plan(
        tuple(
            Choice(decision=name, option=option, version=handlers[name].version)
            for name, option in wanted.items()
            if option != handlers[name].leave_alone
        )
    )


def _material(model: nn.Module, fit: Tensor) -> Material:
    return Material(
        teacher=model,
        example=fit[:BATCH],
        fit=list(fit[:300].split(50)),
        held_out=list(fit[300:].split(50)),
        signature=sign_model(model),
        machine=inspect(),
        threads=1,
        seed=0,
        phase=lambda name: None,
    )


@torch.no_grad()
def milliseconds(modules: Mapping[str, nn.Module], x: Inputs) -> dict[str, float]:
    """The lower quartile of `ROUNDS` calls of each, in turn: other programs only ever make calls longer."""
    took: dict[str, list[float]] = {name: [] for name in modules}
    for _ in range(ROUNDS):
        for name, module in modules.items():
            began = time.perf_counter()
            call(module, x)
            took[name].append(1e3 * (time.perf_counter() - began))
    return {name: statistics.quantiles(times, n=4)[0] for name, times in took.items()}


def kernels(module: nn.Module, x: Tensor) -> str:
    """What a runtime says of its kernels: OpenVINO of its convolutions', torch of the vectors it uses."""
    if not isinstance(module, OpenVinoModule):
        return torch.backends.cpu.get_cpu_capability()
    compiled = compiled_for(module._read(module.contents()), [tuple(x.shape)], {"INFERENCE_NUM_THREADS": 1})
    infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    kinds = {str(i["primitiveType"].astype(str)) for i in infos if i["layerType"].astype(str) == "Convolution"}
    return " ".join(sorted(kinds))


def in_processes(runtimes: tuple[str, ...], caps: tuple[str, ...]) -> list[dict[str, Any]]:
    """A row for every runtime under every cap, each from a process of its own."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        _train(Path(name))
        for runtime in runtimes:
            without: dict[str, Any] = {}
            for cap in caps:
                row = {"runtime": runtime, "cap": cap} | _asked(Path(name), runtime, CAPS[cap])
                without = without or row
                rows.append(row | {"obeys": _obeys(without, row)})
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def _train(folder: Path) -> None:
    data = read_digits()
    torch.manual_seed(0)
    model = make_network()
    train(model, *data["train"])
    torch.save((model, data["calibrate"][0], data["test"][0]), folder / "network.pt")


def _asked(folder: Path, runtime: str, cap: Mapping[str, str]) -> dict[str, Any]:
    command = [sys.executable, str(HERE), "--one", runtime, "--folder", str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **cap}, check=False)
    if run.returncode:
        return {"failed": run.stderr.strip()[-200:]}
    row: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return row


def _obeys(without: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """Whether a cap changed anything; "" without a cap, and where there are no figures."""
    if row["runtime"] == WITHOUT_MEANS:
        return "no means"
    if row["cap"] == "none" or "int8_ms" not in row or "int8_ms" not in without:
        return ""
    slower = any(row[name] > SLOWER * without[name] for name in ("fp32_ms", "int8_ms"))
    return "yes" if slower or row["kernels"] != without["kernels"] else "no change"


def digits(cap: Mapping[str, str], options: tuple[str, ...]) -> dict[str, float]:
    """`examples/digits.py` in a process of its own: how much faster, smaller and worse its answer is."""
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, str(HERE.parents[1] / "examples/digits.py"), "--alone", "--workers", "0"]
        command += ["--output", f"{name}/out", *options]
        env = {**os.environ, **cap}
        run = subprocess.run(command, stdout=sys.stderr, env=env, check=False)
        if run.returncode:
            raise SystemExit(f"examples/digits.py ended with {run.returncode}")
        figures = json.loads(Path(name, "out/result.json").read_text())["figures"]
    return {short: figures[long]["value"] for short, long in FIGURES.items()}


FIGURES = {"speedup": "speedup", "size_ratio": "compression_ratio", "accuracy_drop": "accuracy_drop"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="no compiler, one cap, one short run of digits")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--one", choices=RUNTIMES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.folder, arguments.one)))
        return
    quick = arguments.quick
    rows = in_processes(RUNTIMES[:3] if quick else RUNTIMES, tuple(CAPS)[:2] if quick else tuple(CAPS))
    found = {
        f"digits_{k}": v for k, v in digits({}, ("--simulations", "8", "--timeout", "90") if quick else ()).items()
    }
    if not quick:
        found |= {f"capped_{name}": value for name, value in digits(CAPS["AVX2"], ()).items()}
    if arguments.json:
        print(json.dumps({"rows": rows, **found}))
        return
    for row in rows:
        print(
            ", ".join(
                f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
            )
        )
    print(", ".join(f"{name} {value:.3g}" for name, value in found.items()))


if __name__ == "__main__":
    main()
