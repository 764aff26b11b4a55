"""A model file for the command line, to copy: `make` takes nothing and returns the model with what belongs to it.

model-opt optimize examples/my_model.py:make --max-accuracy-drop 2% --output out

The model here is the small CNN of `digits.py`, trained on 1,000 handwritten digits (some seconds).
"""

from typing import Any

import torch
from digits import make_network, read_digits, train


def make() -> dict[str, Any]:
    data = read_digits()
    torch.manual_seed(0)
    model = make_network()
    train(model, *data["train"])  # yours: load your trained weights instead
    images, classes = data["calibrate"]
    return {
        "model": model,
        "example_input": images[:8],  # batch first: what is timed
        "calibration_data": list(zip(images.split(50), classes.split(50), strict=True)),  # half of it judges
    }
