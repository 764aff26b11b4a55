"""ONNX Runtime's static int8 as its quantisation guide says: QDQ, weights per channel, after its pre-processing."""

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import CalibrationDataReader
from onnxruntime.quantization.shape_inference import quant_pre_process

from contenders.contender import Material, Run, main


class Batches(CalibrationDataReader):
    def __init__(self, batches: list[np.ndarray]) -> None:
        self.rest = iter([{"images": batch} for batch in batches])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.rest, None)


def prepare(material: Material, out: Path, threads: int) -> None:
    example = torch.from_numpy(material.test[: material.batch])
    plain, ready = out / "plain.onnx", out / "ready.onnx"
    torch.onnx.export(
        material.network(), (example,), plain, input_names=["images"], dynamo=True, external_data=False, verbose=False
    )
    quant_pre_process(plain, ready, skip_symbolic_shape=material.transformer)
    quantize_static(
        ready,
        out / "model.onnx",
        Batches(material.batches(material.fit)),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    plain.unlink()
    ready.unlink()


def load(material: Material, out: Path, threads: int) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(out / "model.onnx", options, providers=["CPUExecutionProvider"])

    def run(images: np.ndarray) -> np.ndarray:
        return session.run(None, {"images": images})[0]

    return run


if __name__ == "__main__":
    main(prepare, load)
