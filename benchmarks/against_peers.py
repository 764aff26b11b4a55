"""Ours against what users would pick instead on a CPU: the same model, calibration data, threads and minutes.

python benchmarks/against_peers.py [ROW ...] [--quick] [--threads 1] [--minutes 15] [--json]

Each peer does what its own documentation says, in an environment of its own. All are prepared first, then loaded from
their files, each in a process of its own, and timed in turn. Everything is kept in --cache, so that a run that was cut
off goes on where it was. `best_peer_ratio_min` is the least of the rows' ratios: how many times faster ours is than
the fastest peer, by the fastest of our answers that is at least as close to the original as that peer is.
"""

import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders.contender import relative_error
from contenders.environments import environment
from contenders.rows import QUICK, ROWS, Row, make_material

from model_opt.compression.evaluation.losses import class_changes

PEERS: Mapping[str, tuple[str, ...]] = {
    "openvino_nncf": ("openvino==2026.4.1", "nncf==3.4.0", "torch==2.14.1"),
    "openvino_accuracy_control": ("openvino==2026.4.1", "nncf==3.4.0", "torch==2.14.1"),
    "onnxruntime_static": ("onnxruntime==1.32.0", "onnx==1.23.2", "onnxscript", "torch==2.14.1"),
    "torchao_pt2e": ("torchao==0.18.0", "torch==2.14.1"),
    "neural_compressor_pt2e": ("neural-compressor-pt==3.10", "torchao==0.18.0", "torch==2.14.1"),
}
"""Peer → the packages that its environment is pinned to, beside torchvision, which every network comes from."""
NEEDS_ACCURACY = {"openvino_accuracy_control"}
HERE = Path(__file__).parent
AS_FAST = 0.97
"""What counts as equal speed."""
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "4294967296"}


def command(contender: str, what: str, material: Path, out: Path, threads: int, cache: Path) -> list[str]:
    python = sys.executable
    if contender in PEERS:
        python = str(environment(contender, PEERS[contender], cache))
    module = f"contenders.{contender.partition('@')[0]}"
    return [python, "-m", module, what, str(material), str(out), "--threads", str(threads)]


def variables(contender: str, threads: int) -> dict[str, str]:
    """Of a contender's process; what follows "@" in its name is where it imports model_opt from."""
    path = os.pathsep.join(filter(None, [str(HERE), contender.partition("@")[2], os.environ.get("PYTHONPATH")]))
    return {**os.environ, **ALLOCATOR, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}


def prepare(contender: str, material: Path, out: Path, threads: int, cache: Path, limit_s: float) -> str | None:
    """Makes the contender's model in `out`, once; None, or why there is none."""
    done = out / "prepared.json"
    if not done.exists():
        out.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        failure = None
        with (out / "log.txt").open("w") as log:
            try:
                subprocess.run(
                    command(contender, "prepare", material, out, threads, cache),
                    env=variables(contender, threads), stdout=log, stderr=log, check=True, timeout=limit_s,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                failure = f"not ready after {limit_s:.0f} s"
            except subprocess.CalledProcessError:
                failure = (out / "log.txt").read_text().strip().splitlines()[-1][:300]
        done.write_text(json.dumps({"failure": failure, "seconds": time.monotonic() - began}))
    return json.loads(done.read_text())["failure"]


class Served:
    """A contender's process with its model loaded."""

    def __init__(self, contender: str, material: Path, out: Path, threads: int, cache: Path) -> None:
        self.log = (out / "serve.txt").open("w")
        self.process = subprocess.Popen(
            command(contender, "serve", material, out, threads, cache),
            env=variables(contender, threads), stderr=self.log,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.answer()

    def answer(self) -> Any:
        """The next JSON line; libraries that print are passed over."""
        for line in self.process.stdout or ():
            with contextlib.suppress(ValueError):
                return json.loads(line)
        raise RuntimeError(f"a contender's process ended: {self.process.args}")

    def ask(self, **wanted: object) -> Any:
        self.process.stdin.write(json.dumps(wanted) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.log.close()


@contextlib.contextmanager
def serving(folders: Mapping[str, Path], material: Path, threads: int, cache: Path) -> Iterator[dict[str, Served]]:
    there: dict[str, Served] = {}
    try:
        for name, out in folders.items():
            there[name] = Served(name.partition(":")[0], material, out, threads, cache)
        yield there
    finally:
        for served in there.values():
            served.close()


def quality(folder: Path, outs: Mapping[str, Path]) -> dict[str, dict[str, float]]:
    """How close each contender's outputs on the test images are to the original's."""
    expected = np.load(outs["original"] / "outputs.npy")
    labels = folder / "labels.npy"
    found = {}
    for name, out in outs.items():
        made = np.load(out / "outputs.npy")
        figures = {
            "agreement": float((made.argmax(1) == expected.argmax(1)).mean()),
            "sqnr_db": -20 * math.log10(max(relative_error(made, expected), 1e-10)),
            "size_bytes": sum(p.stat().st_size for p in out.glob("model.*")),
        }
        if labels.exists():
            figures["accuracy"] = float((made.argmax(1) == np.load(labels)[: len(made)]).mean())
        found[name] = figures
    return found


def timed(
    outs: Mapping[str, Path], folder: Path, threads: int, cache: Path, starts: int, rounds: int
) -> dict[str, list[float]]:
    """Median milliseconds of each contender in each round of each start; all are timed in turn within a round."""
    taken: dict[str, list[float]] = {name: [] for name in outs}
    for start in range(starts):
        order = list(outs) if start % 2 == 0 else list(outs)[::-1]
        with serving({name: outs[name] for name in order}, folder, threads, cache) as there:
            if start == 0:
                for name in order:
                    there[name].ask(outputs=str(outs[name] / "outputs.npy"))
            for _ in range(rounds):
                for name in order:
                    taken[name].append(statistics.median(there[name].ask(time_s=0.2)))
    return taken


def faster(taken: Mapping[str, list[float]], name: str, than: str) -> float:
    """How many times faster `name` is than another contender: the median over the rounds.

    Round by round, for a busy neighbour slows what computes in int8 and bf16 more than it slows the original.
    """
    return statistics.median(b / t for b, t in zip(taken[than], taken[name], strict=True))


def verdict(row: Row, figures: Mapping[str, Mapping[str, float]], taken: Mapping[str, list[float]]) -> dict[str, Any]:
    """Ours against the peers, above all the fastest: by our fastest answer that is at least as close to the original.

    `least_ratio` is the least of the ratios to all peers, each at that peer's closeness.
    """
    peers = [name for name in figures if name in PEERS]
    ours = [name for name in figures if name.startswith("ours")]
    best = max(peers, key=lambda name: figures[name]["speedup"])
    loss = {name: _loss(row, f) for name, f in figures.items()}
    ratios = {}
    for peer in peers:
        close = [faster(taken, name, peer) for name in ours if loss[name] <= loss[peer]]
        ratios[peer] = max(close, default=0.0)
    as_fast = [loss[name] for name in ours if faster(taken, name, best) >= AS_FAST]
    return {
        "best_peer": best,
        "best_peer_ratio": ratios[best],
        "least_ratio": min(ratios.values()),
        "ratios": ratios,
        "loss_ratio_at_equal_speed": min(as_fast, default=math.inf) / loss[best] if loss[best] else None,
    }


def _loss(row: Row, figures: Mapping[str, float]) -> float:
    """The share of rows whose class changed, or the relative power of the error of the outputs."""
    return 1 - figures["agreement"] if row.judged == "agreement" else 10 ** (-figures["sqnr_db"] / 10)


def run_row(row: Row, arguments: argparse.Namespace) -> dict[str, Any]:
    cache, threads = arguments.cache, arguments.threads
    folder = cache / row.name
    kept = folder / "result.json"
    if kept.exists() and not arguments.again:
        return json.loads(kept.read_text())
    make_material(row, folder, arguments.minutes)
    wanted = [p for p in PEERS if row.judged == "agreement" or p not in NEEDS_ACCURACY]
    failures, outs = {}, {}
    for contender in ("original", *wanted):
        out = folder / contender
        failure = prepare(contender, folder, out, threads, cache, arguments.minutes * 60)
        if failure:
            failures[contender] = failure
        else:
            outs[contender] = out
    if not (folder / "ours" / "prepared.json").exists():
        _limit_of_peers(row, folder, outs, threads, cache)
    if failure := prepare("ours", folder, folder / "ours", threads, cache, arguments.minutes * 60 + 600):
        failures["ours"] = failure
    for answer in sorted((folder / "ours").glob("answer*")):
        outs[f"ours:{answer.name[6:]}"] = answer
    if arguments.prepare_only:
        return {"row": row.name, "failures": failures}
    taken = timed(outs, folder, threads, cache, arguments.starts, arguments.rounds)
    closeness = quality(folder, outs)
    figures = {
        name: {"latency_ms": statistics.median(taken[name]), "speedup": faster(taken, name, "original")} | found
        for name, found in closeness.items()
    }
    plans = {name: json.loads((out / "plan.json").read_text()) for name, out in outs.items() if "ours" in name}
    seconds = {n: json.loads((folder / n / "prepared.json").read_text())["seconds"] for n in wanted}
    if "ours" not in failures:
        seconds["ours"] = json.loads((folder / "ours" / "search.json").read_text())["seconds"]
    result = {"row": row.name, "judged": row.judged, "threads": threads, "figures": figures, "failures": failures}
    result |= {"plans": plans, "seconds": seconds} | verdict(row, figures, taken)
    kept.write_text(json.dumps(result, indent=1))
    return result


def _limit_of_peers(row: Row, folder: Path, outs: Mapping[str, Path], threads: int, cache: Path) -> None:
    """Our search may lose as much as the fastest peer does on the calibration rows: into the row's material."""
    taken = timed(outs, folder, threads, cache, starts=1, rounds=4)
    fastest = min((name for name in outs if name in PEERS), key=lambda name: statistics.median(taken[name]))
    made = {}
    with serving({name: outs[name] for name in ("original", fastest)}, folder, threads, cache) as there:
        for name, served in there.items():
            served.ask(outputs=str(outs[name] / "fit.npy"), of="fit")
            made[name] = torch.from_numpy(np.load(outs[name] / "fit.npy"))
    if row.judged == "agreement":
        loss = class_changes(made["original"], made[fastest], whole=True).value
    else:
        loss = relative_error(made[fastest].numpy(), made["original"].numpy())
    described = json.loads((folder / "row.json").read_text())
    (folder / "row.json").write_text(json.dumps(described | {"limit": min(1.0, loss)}))


def show(result: Mapping[str, Any]) -> None:
    print(f"\n{result['row']} ({result['threads']} thread, judged by {result['judged']})")
    for name, f in sorted(result["figures"].items(), key=lambda item: -item[1]["speedup"]):
        accuracy = f", accuracy {f['accuracy']:.1%}" if "accuracy" in f else ""
        print(
            f"  {name:27} {f['speedup']:6.2f}x {f['latency_ms']:9.3f} ms  agreement {f['agreement']:.1%}, "
            f"{f['sqnr_db']:5.1f} dB, {f['size_bytes'] / 1e6:7.2f} MB{accuracy}  {result['plans'].get(name, '')}"
        )
    for name, reason in result["failures"].items():
        print(f"  {name}: {reason}")
    print(
        f"  ours / {result['best_peer']} at equal or better {result['judged']}: {result['best_peer_ratio']:.2f}; "
        f"loss at equal speed: {result['loss_ratio_at_equal_speed']}"
    )
    if "ours" in result["seconds"]:
        print(f"  our search took {result['seconds']['ours']:.0f} s")


def summary(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What --json prints: the least ratio, a line for each row, a line for each contender of each row."""
    said = ("row", "judged", "best_peer", "best_peer_ratio", "least_ratio", "loss_ratio_at_equal_speed")
    return {
        "best_peer_ratio_min": min((result["best_peer_ratio"] for result in results), default=None),
        "threads": results[0]["threads"] if results else None,
        "rows": [{key: r[key] for key in said} | {"search_s": r["seconds"].get("ours")} for r in results],
        "contenders": [
            {"row": r["row"], "contender": name} | figures | {"plan": r["plans"].get(name, "")}
            for r in results
            for name, figures in sorted(r["figures"].items(), key=lambda item: -item[1]["speedup"])
        ],
        "failures": [
            {"row": r["row"], "contender": n, "why": why} for r in results for n, why in r["failures"].items()
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [row.name for row in ROWS]
    parser.add_argument("rows", nargs="*", help=", ".join(names))
    parser.add_argument("--quick", action="store_true", help="two small rows, two minutes each")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, help="for each contender to prepare; 15, or 2 with --quick")
    parser.add_argument("--starts", type=int, default=2, help="process starts that are timed")
    parser.add_argument("--rounds", type=int, default=12, help="turns a start")
    parser.add_argument("--cache", type=Path, default=Path(".cache/against_peers"))
    parser.add_argument("--again", action="store_true", help="time again what was timed before")
    parser.add_argument("--prepare-only", action="store_true", help="make the models and time nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments = parser.parse_args()
    arguments.cache = arguments.cache.resolve()
    arguments.minutes = arguments.minutes or (2 if arguments.quick else 15)
    wanted = arguments.rows or (QUICK if arguments.quick else names)
    results = []
    for row in ROWS:
        if row.name in wanted:
            results.append(run_row(row, arguments))
            if "figures" in results[-1] and not arguments.json:
                show(results[-1])
    if arguments.json:
        print(json.dumps(summary([result for result in results if "figures" in result])))


if __name__ == "__main__":
    main()
