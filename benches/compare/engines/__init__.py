"""The engines that run inside `worker.py`.

Each module imports its library, so that the import is no part of the load, and has
`start(job) -> call`: it loads one part of a model and returns a function that runs the part once
and returns its output as a float32 array.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass
class Job:
    engine: str
    part: str  # unet, vae-decoder or picture
    precision: str  # f32, bf16 or f16
    layout: str  # "channels-last" or empty
    model: Path  # a diffusers folder
    graphs: Path  # the model's ONNX graphs, written by the example `convert`
    exports: Path  # networks exported from torch
    latents: str  # WIDTHxHEIGHT
    threads: int  # 0 is the engine's default
