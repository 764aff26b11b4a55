"""What leaves and what comes, as text: the output of export, import, push and pull."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model_opt.exchange.intake import Taken
    from model_opt.exchange.shared import ExportPreview


def print_leaving(preview: "ExportPreview", as_json: bool) -> None:
    """Every field that would leave: all of it as JSON, or by envelope with one line a row."""
    if as_json:
        print(json.dumps(asdict(preview)))
        return
    for envelope in preview.envelopes:
        print(f"envelope {envelope['sequence']} of origin {envelope['origin']}")
        for name in ("federation", "epoch", "previous"):
            print(f"  {name:12} {envelope[name]}")
        for name, value in envelope["signature"].items():
            print(f"  {name:12} {value}")
        for number, context in enumerate(envelope["contexts"]):
            print(f"  context {number}    {context}")
        for row in envelope["rows"]:
            print(f"  {_row(row)}")
    print(f"told before  {preview.told_before} records")
    for origin, count in preview.relayed.items():
        print(f"relayed      {count} records that {origin} has signed")
    for reason, count in preview.held_back.items():
        print(f"stays        {count} rows: {reason}")


def _row(row: Mapping[str, Any]) -> str:
    plan = ", ".join(f"{name}={option} (v{row['versions'][name]})" for name, option in row["plan"].items())
    figures = (
        f"{name} n={m['n']} mean={m['mean']:.6g} m2={m['m2']:.3g} min={m['min']:.6g} max={m['max']:.6g}"
        for name, m in row["moments"].items()
    )
    return f"row in context {row['context']}: {plan or 'leave alone'}: {'; '.join(figures)}"


def print_taken(taken: "Taken", as_json: bool) -> None:
    """What was taken in, and what to do about the rest."""
    if as_json:
        print(json.dumps(asdict(taken)))
        return
    counts = {name: getattr(taken, name) for name in ("new", "known", "own", "rows_added", "rows_updated")}
    print(as_lines(counts))
    for name, values in (("from", taken.origins), ("withdrawn", taken.withdrawals), ("quarantined", taken.quarantined)):
        for value in values:
            print(f"{name:12} {value}")
    for reason, count in taken.refused.items():
        print(f"refused      {count} records: {reason}")
    for gap in taken.gaps:
        print(f"missing      after {gap.known} of {gap.origin}, epoch {gap.epoch}: ask a hub, or for a whole export")


def as_lines(fields: Mapping[str, Any]) -> str:
    """One line a field."""
    return "\n".join(f"{name.replace('_', ' '):12} {value}" for name, value in fields.items())


def touched_by(origin: str, folder: Path) -> list[Path]:
    """The results below `folder` whose search started from knowledge of `origin`."""
    found = []
    for path in sorted(folder.rglob("result.json")):
        try:
            origins = json.loads(path.read_text())["knowledge"]["origins"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if isinstance(origins, list) and origin in origins:
            found.append(path)
    return found
