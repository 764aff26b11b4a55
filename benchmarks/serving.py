"""Do answers stay right while many threads ask for batches of any size, does memory stay flat, and how fast is it?

python benchmarks/serving.py [--minutes 10] [--threads 8] [--quick] [--json]

A trained network of digits in every runtime, in float32 and int8, serves threads that ask for 1 to 32 rows at random;
every answer is compared with that of the same runtime to the same rows, asked for alone beforehand, and now and then
with torch's. Memory is the process's resident set a quarter into the time and at its end. Throughput (rows a second)
is beside the original's, served alike by turns. --quick takes 20 s, without a compiler.
"""

import argparse
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from digits import make_network, read_digits, train
from making import material_of, plan_of

from model_opt.compression.evaluation.apply import apply_plan
from model_opt.compression.signal_to_noise import signal_to_noise_db

MOST_ROWS, EXAMPLE = 32, 8
SERVED = (
    ("torch", "int8_static"),
    ("openvino", "fp32"),
    ("openvino", "int8_static"),
    ("onnxruntime", "fp32"),
    ("onnxruntime", "int8_static"),
    ("aot_inductor", "fp32"),
)
LEAST_DB = {"fp32": 60.0, "int8_static": 25.0}
"""How close an answer must be to torch's."""


def served(model: nn.Module, fit: Tensor, runtime: str, precision: str) -> nn.Module:
    """`model` in a runtime, compiled for batches of `EXAMPLE`."""
    material = material_of(model, fit[:EXAMPLE], fit[:256].split(32), fit[256:].split(32))
    return apply_plan(plan_of(material, {"clean": "fused", "precision": precision, "runtime": runtime}), material)


def batches(rows: Tensor) -> list[Tensor]:
    """One batch of every size up to `MOST_ROWS`, each of other rows."""
    return [rows[size : 2 * size] for size in range(1, MOST_ROWS + 1)]


@torch.no_grad()
def serve(made: nn.Module, original: nn.Module, given: list[Tensor], threads: int, seconds: float) -> dict[str, Any]:
    """What `threads` threads get in `seconds`, and how it compares."""
    alone = [made(x) for x in given]
    closest = min(signal_to_noise_db(original(x), y) for x, y in zip(given, alone, strict=True))
    counts = {"calls": 0, "rows": 0, "wrong": 0}
    lock, until = threading.Lock(), time.monotonic() + seconds
    memory: list[int] = []

    def ask(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        calls = rows = wrong = 0
        with torch.no_grad():
            while time.monotonic() < until:
                size = int(torch.randint(len(given), (1,), generator=generator))
                wrong += signal_to_noise_db(alone[size], made(given[size])) < 40
                calls, rows = calls + 1, rows + len(given[size])
        with lock:
            for name, value in (("calls", calls), ("rows", rows), ("wrong", wrong)):
                counts[name] += value

    askers = [threading.Thread(target=ask, args=(seed,)) for seed in range(threads)]
    for asker in askers:
        asker.start()
    for share in (0.25, 1.0):
        time.sleep(max(0.0, until - (1 - share) * seconds - time.monotonic()))
        memory.append(resident_kb())
    for asker in askers:
        asker.join()
    return counts | {
        "closest_db": round(closest, 1),
        "rows_per_s": counts["rows"] / seconds,
        "grew_kb": memory[1] - memory[0],
    }


def resident_kb() -> int:
    """The process's resident set; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="all together")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="20 s, without a compiler")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments = parser.parse_args()
    data = read_digits()
    torch.manual_seed(0)
    model = make_network()
    train(model, *data["train"])
    kinds = SERVED[:5] if arguments.quick else SERVED
    each = (20.0 if arguments.quick else 60 * arguments.minutes) / (2 * len(kinds))
    given, rows = batches(data["test"][0]), []
    for runtime, precision in kinds:
        made = served(model, data["calibrate"][0], runtime, precision)
        found = serve(made, model, given, arguments.threads, each)
        beside = serve(model, model, given, arguments.threads, each)
        found["right"] = found["wrong"] == 0 and found["closest_db"] >= LEAST_DB[precision]
        found["times_the_original"] = found["rows_per_s"] / beside["rows_per_s"]
        rows.append({"runtime": runtime, "precision": precision, **found})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    if arguments.json:
        print(json.dumps({"runtimes": rows}))
        return
    for row in rows:
        print(
            f"{row['runtime']} {row['precision']}: {row['calls']} calls, {row['wrong']} wrong answers, "
            f"{row['rows_per_s']:,.0f} rows/s, {row['times_the_original']:.2f} times the original's, "
            f"memory {row['grew_kb'] / 1024:+.1f} MB"
        )


if __name__ == "__main__":
    main()
