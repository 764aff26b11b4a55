"""What this machine is said to be able to do."""

import pytest

from model_opt.compression.machine import EXTRAS, inspect, libraries
from model_opt.errors import InvalidInput


def test_the_processor_has_a_class_and_a_best_instruction_set() -> None:
    machine = inspect()
    assert machine.device == "cpu"
    assert len(machine.device_class.split()) >= 2
    assert inspect() == machine


def test_libraries_are_what_latency_depends_on() -> None:
    found = libraries()
    assert "torch" in found
    assert set(found) <= {"torch", *EXTRAS}


@pytest.mark.parametrize(("device", "message"), [("tpu9", "no device"), ("meta", "not supported")])
def test_other_devices_are_refused(device: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        inspect(device)


def test_a_gpu_that_is_not_there_is_refused() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(InvalidInput, match="no GPU"):
        inspect("cuda:0")
