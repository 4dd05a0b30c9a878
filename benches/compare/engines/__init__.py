"""The engines that run inside `worker.py`.

Each module imports its library at the top, so that the load does not include the import. It has a
function `start(job) -> run`, which loads one part of a model. `run(number)` runs the part once and
returns its output as an array. Call 0 is not timed, and draws a picture with one step only.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass
class Job:
    part: str  # unet, vae-decoder or picture
    precision: str  # f32, bf16 or f16
    layout: str  # "channels-last" or empty
    model: Path  # a diffusers folder
    graphs: Path  # the model's ONNX graphs, written by the example `convert`
    checkpoint: Path  # the model as one file, written by the example `convert`
    exports: Path  # networks exported from torch
    latents: str  # WIDTHxHEIGHT
    threads: int  # 0 is the engine's default
