"""Intel Neural Compressor's static int8 for PyTorch on a CPU (its PT2E back end), as its StaticQuant guide says."""

from pathlib import Path

import torch
from neural_compressor.torch.export import export
from neural_compressor.torch.quantization import convert, get_default_static_config
from neural_compressor.torch.quantization import prepare as prepare_inc

from contenders.contender import Material, main
from contenders.torchao_pt2e import load, package


def prepare(material: Material, out: Path, threads: int) -> None:
    example = (torch.from_numpy(material.test[: material.batch]),)
    with torch.no_grad():
        prepared = prepare_inc(export(material.network(), example_inputs=example), get_default_static_config())
        for batch in material.batches(material.fit):
            prepared(torch.from_numpy(batch))
        package(convert(prepared), example, out)


if __name__ == "__main__":
    main(prepare, load)
