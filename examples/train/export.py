"""Writes the trained model in the diffusers layout, in f16."""

import shutil
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

from diffusion import NOISE
from text import TOKENIZER, load_tokenizer


def write(folder, vae, unet, text, scaling):
    folder = Path(folder)
    vae.register_to_config(scaling_factor=scaling)
    # The averages are kept in f32. No stored value comes near the limits of f16.
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=load_tokenizer(), unet=unet,
        scheduler=DPMSolverMultistepScheduler(**NOISE, steps_offset=1, use_karras_sigmas=True),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )
    pipeline.to("cpu", torch.float16)
    for part in ("vae", "unet", "text_encoder"):
        getattr(pipeline, part).save_pretrained(folder / part)
    pipeline.scheduler.save_pretrained(folder / "scheduler")
    pipeline.save_config(folder)
    (folder / "tokenizer").mkdir(exist_ok=True)
    for file in ("merges.txt", "vocab.json", "tokenizer_config.json"):
        if (folder / "tokenizer").resolve() != TOKENIZER.resolve():
            shutil.copy(TOKENIZER / file, folder / "tokenizer" / file)
