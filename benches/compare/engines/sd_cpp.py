"""Runs stable-diffusion.cpp through its Python package, which is built on the same machine.

Only whole pictures are drawn. The weights keep the type that they have in the model. The noise is
stable-diffusion.cpp's own.
"""

import numpy
from stable_diffusion_cpp import StableDiffusion

import inputs


def start(job):
    height, width = (8 * side for side in inputs.sides(job.latents))
    model = StableDiffusion(
        model_path=str(job.checkpoint),
        wtype=job.precision,
        n_threads=job.threads or -1,
        vae_decode_only=True,
        diffusion_flash_attn=True,
        verbose=False,
    )

    def draw(call):
        (image,) = model.generate_image(
            inputs.PROMPT,
            inputs.NEGATIVE,
            cfg_scale=inputs.GUIDANCE,
            width=width,
            height=height,
            sample_method="euler",
            sample_steps=inputs.STEPS if call else 1,
            seed=inputs.SEED,
        )
        return (
            numpy.asarray(image.convert("RGB"), dtype=numpy.float32).transpose(2, 0, 1) / 127.5 - 1
        )

    return draw
