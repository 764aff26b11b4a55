"""OpenVINO with NNCF's accuracy control: int8, with layers put back to float until at most one point is lost."""

from pathlib import Path

import nncf
import numpy as np
import openvino

from contenders.contender import Material, main, outputs, torch_run
from contenders.openvino_nncf import converted, load, model_type


def prepare(material: Material, out: Path, threads: int) -> None:
    half = len(material.fit) // 2
    calibration, validation = material.batches(material.fit[:half]), material.batches(material.fit[half:])
    expected = outputs(torch_run(material.network()), material, material.fit[half:]).argmax(1)

    def agreement(compiled: openvino.CompiledModel, batches: list[np.ndarray]) -> float:
        made = np.concatenate([compiled(batch)[0].argmax(1) for batch in batches])
        return float((made == expected[: len(made)]).mean())

    quantised = nncf.quantize_with_accuracy_control(
        converted(material),
        calibration_dataset=nncf.Dataset(calibration),
        validation_dataset=nncf.Dataset(validation),
        validation_fn=agreement,
        max_drop=0.01,
        model_type=model_type(material),
    )
    openvino.save_model(quantised, out / "model.xml", compress_to_fp16=False)


if __name__ == "__main__":
    main(prepare, load)
