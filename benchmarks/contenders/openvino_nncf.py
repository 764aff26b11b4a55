"""OpenVINO with NNCF's post-training quantisation, as NNCF's README and OpenVINO's guide say."""

from pathlib import Path

import nncf
import numpy as np
import openvino
import torch

from contenders.contender import Material, Run, main


def converted(material: Material) -> openvino.Model:
    """By tracing; where that fails, as for attention's fast path, from torch.export. OpenVINO's guide has both."""
    example = torch.from_numpy(material.test[: material.batch])
    model, shape = material.network(), list(example.shape)
    try:
        return openvino.convert_model(model, example_input=example, input=shape)
    except RuntimeError:
        return openvino.convert_model(torch.export.export(model, (example,)), input=shape)


def model_type(material: Material) -> nncf.ModelType | None:
    return nncf.ModelType.TRANSFORMER if material.transformer else None


def prepare(material: Material, out: Path, threads: int) -> None:
    dataset = nncf.Dataset(material.batches(material.fit))
    quantised = nncf.quantize(converted(material), dataset, model_type=model_type(material))
    openvino.save_model(quantised, out / "model.xml", compress_to_fp16=False)


def load(material: Material, out: Path, threads: int) -> Run:
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}
    compiled = openvino.Core().compile_model(out / "model.xml", "CPU", settings)

    def run(images: np.ndarray) -> np.ndarray:
        return compiled(images)[0]

    return run


if __name__ == "__main__":
    main(prepare, load)
