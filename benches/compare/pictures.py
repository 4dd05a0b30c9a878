"""Compares pictures that `txt2img` and diffusers draw with the small model, both in f32.

    pip install -r requirements.txt
    cargo build --release --example txt2img && python pictures.py

Prints how many values of each picture differ, and by how much. The first row is the first picture
in the README.
"""

import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples" / "models" / "emoji"
PICTURES = [("a fox", "", 1), ("a pizza", "", 1), ("a rocket on a blue background", "", 2), ("strawberry on white", "", 2),
            ("a banana on black", "red", 2), ("a fox and an apple", "a blue background", 2)]


def ours(prompt, negative, seed, folder):
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    file = folder / f"{prompt}.png"
    command = [target / "release" / "examples" / "txt2img", prompt, "--negative", negative, "--seed", str(seed), "--output", file]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return np.asarray(Image.open(file).convert("RGB")).astype(int)


def main():
    # The weights are stored in f16, and txt2img computes with them in f32.
    pipeline = StableDiffusionPipeline.from_pretrained(MODEL, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    with tempfile.TemporaryDirectory() as folder:
        for prompt, negative, seed in PICTURES:
            # The defaults of both are the same, except for the number of steps.
            drawn = pipeline(prompt, negative_prompt=negative, num_inference_steps=20, guidance_scale=7.5,
                             height=96, width=96, generator=torch.Generator("cpu").manual_seed(seed))
            apart = np.abs(np.asarray(drawn.images[0]).astype(int) - ours(prompt, negative, seed, Path(folder)))
            print(f"{prompt!r} seed {seed}: {np.count_nonzero(apart)} of {apart.size} values differ, by at most {apart.max()} of 255")


if __name__ == "__main__":
    main()
