"""The model as it is, in torch's eager mode."""

from pathlib import Path

from contenders.contender import Material, Run, main, torch_run


def prepare(material: Material, out: Path, threads: int) -> None:
    (out / "model.pt").write_bytes((material.folder / "weights.pt").read_bytes())


def load(material: Material, out: Path, threads: int) -> Run:
    return torch_run(material.network())


if __name__ == "__main__":
    main(prepare, load)
