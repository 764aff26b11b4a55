"""torchao's PT2E static int8 for x86 with Inductor, frozen, compiled ahead of time into a package."""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch._inductor import aoti_compile_and_package, aoti_load_package, config
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

from contenders.contender import Material, Run, main


def prepare(material: Material, out: Path, threads: int) -> None:
    example = (torch.from_numpy(material.test[: material.batch]),)
    with torch.no_grad():
        program = torch.export.export(material.network(), example).module()
        quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(program, quantizer)
        for batch in material.batches(material.fit):
            prepared(torch.from_numpy(batch))
        package(convert_pt2e(prepared), example, out)


def package(model: nn.Module, example: tuple[torch.Tensor, ...], out: Path) -> None:
    with torch.no_grad(), config.patch(freezing=True):
        aoti_compile_and_package(torch.export.export(model, example), package_path=str(out / "model.pt2"))


def load(material: Material, out: Path, threads: int) -> Run:
    session = aoti_load_package(str(out / "model.pt2"))

    @torch.inference_mode()
    def run(images: np.ndarray) -> np.ndarray:
        return session(torch.from_numpy(images)).numpy()

    return run


if __name__ == "__main__":
    main(prepare, load)
