"""Whether a change made a plan's model slower, or further from the original: two commits make it, timed in turn.

python benchmarks/commits.py COMMIT [ROW ...] [--plan '{"clean": "fused", "runtime": "openvino"}'] [--json]

COMMIT is compared with the working tree, over rows of `against_peers.py`, which makes their material. Both sides use
this environment's packages. `ratio_min` is the least of the rows' ratios: how many times faster ours is now, the median
over the rounds.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from against_peers import HERE, faster, prepare, quality, timed
from contenders.rows import ROWS, Row, make_material

PLAN = {"clean": "fused", "precision": "int8_static", "runtime": "openvino"}
PREPARE_S = 900.0


@contextmanager
def tree_of(commit: str) -> Iterator[Path]:
    """The sources of `commit`, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="model-opt-") as folder:
        archive = subprocess.run(["git", "archive", commit, "src"], cwd=HERE.parent, stdout=subprocess.PIPE, check=True)
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        yield Path(folder) / "src"


def compare(row: Row, sources: dict[str, Path], plan: dict[str, str], arguments: argparse.Namespace) -> dict[str, Any]:
    """A row's figures: milliseconds, decibels and the ratio of both sides, or why there are none."""
    folder, threads, cache = arguments.cache / row.name, arguments.threads, arguments.cache
    make_material(row, folder, PREPARE_S / 60)
    with tempfile.TemporaryDirectory(prefix="model-opt-") as made:
        contenders = {"original": "original"} | {side: f"one_plan@{source}" for side, source in sources.items()}
        outs = {name: Path(made) / side for side, name in contenders.items()}
        for name, out in outs.items():
            out.mkdir()
            (out / "plan.json").write_text(json.dumps(plan))
            if failure := prepare(name, folder, out, threads, cache, PREPARE_S):
                return {"row": row.name, "failure": f"{name}: {failure}"}
        taken = timed(outs, folder, threads, cache, arguments.starts, arguments.rounds)
        close = quality(folder, outs)
    found: dict[str, Any] = {"row": row.name, "ratio": faster(taken, contenders["now"], contenders["before"])}
    for side in sources:
        name = contenders[side]
        found[f"{side}_ms"] = statistics.median(taken[name])
        found[f"{side}_db"] = close[name]["sqnr_db"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    parser.add_argument("rows", nargs="*", help=", ".join(row.name for row in ROWS))
    parser.add_argument("--plan", type=json.loads, default=PLAN, help=f"default: {json.dumps(PLAN)}")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--starts", type=int, default=2, help="process starts that are timed")
    parser.add_argument("--rounds", type=int, default=12, help="turns a start")
    parser.add_argument("--cache", type=Path, default=Path(".cache/against_peers"))
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments = parser.parse_args()
    arguments.cache = arguments.cache.resolve()
    rows = []
    with tree_of(arguments.commit) as before:
        sources = {"before": before, "now": HERE.parent / "src"}
        for row in ROWS:
            if row.name in (arguments.rows or [row.name for row in ROWS]):
                rows.append(compare(row, sources, arguments.plan, arguments))
                if not arguments.json:
                    print(json.dumps(rows[-1]), flush=True)
    least = min((row["ratio"] for row in rows if "ratio" in row), default=None)
    print(json.dumps({"ratio_min": least, "rows": rows}) if arguments.json else f"least ratio {least}")


if __name__ == "__main__":
    main()
