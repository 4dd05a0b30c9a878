"""Runs diffusers on torch."""

import torch
from diffusers import (
    AutoencoderKL,
    AutoPipelineForText2Image,
    EulerDiscreteScheduler,
    UNet2DConditionModel,
)
from diffusers.utils import logging

import inputs

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}

torch.set_grad_enabled(False)
logging.set_verbosity_error()
logging.disable_progress_bar()


def start(job):
    if job.threads:
        torch.set_num_threads(job.threads)
    if job.part == "picture":
        _, draw = pipeline_and_draw(job)
        return draw
    module, arguments = network(job)
    return lambda call: module(*arguments.values()).float().numpy()


def network(job):
    """Returns a network as a module that takes tensors by position, and its inputs by name."""
    dtype = DTYPES[job.precision]
    module = (Unet if job.part == "unet" else Decoder)(job.model, dtype).eval()
    if job.layout:
        module = module.to(memory_format=torch.channels_last)
    arrays = (
        inputs.unet_inputs(job.model, job.latents)
        if job.part == "unet"
        else dict(latents=inputs.vae_input(job.model, job.latents))
    )
    return module, {
        name: torch.from_numpy(array).to(kept_dtype(name, dtype)) for name, array in arrays.items()
    }


def kept_dtype(name, dtype):
    """Returns the type of an input.

    Timesteps and sizes stay in float32, because diffusers computes their sines in it.
    """
    return torch.float32 if name in ("timestep", "time_ids") else dtype


class Unet(torch.nn.Module):
    def __init__(self, model, dtype):
        super().__init__()
        self.unet = UNet2DConditionModel.from_pretrained(
            model, subfolder="unet", torch_dtype=dtype, local_files_only=True
        )

    def forward(self, sample, timestep, encoder_hidden_states, text_embeds=None, time_ids=None):
        added = None if time_ids is None else dict(text_embeds=text_embeds, time_ids=time_ids)
        return self.unet(
            sample, timestep, encoder_hidden_states, added_cond_kwargs=added, return_dict=False
        )[0]


class Decoder(torch.nn.Module):
    def __init__(self, model, dtype):
        super().__init__()
        self.vae = AutoencoderKL.from_pretrained(
            model, subfolder="vae", torch_dtype=dtype, local_files_only=True
        )

    def forward(self, latents):
        return self.vae.decode(latents, return_dict=False)[0]


def pipeline_and_draw(job):
    """Returns the pipeline, and a function that draws a whole picture on its device, with Euler on
    the leading ladder and from float32 noise of the seed."""
    dtype = DTYPES[job.precision]
    pipeline = AutoPipelineForText2Image.from_pretrained(
        job.model, torch_dtype=dtype, local_files_only=True
    )
    pipeline.scheduler = EulerDiscreteScheduler.from_config(
        pipeline.scheduler.config,
        timestep_spacing="leading",
        steps_offset=1,
        use_karras_sigmas=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    if job.layout:
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
    height, width = inputs.sides(job.latents)

    def draw(call):
        generator = torch.Generator().manual_seed(inputs.SEED)
        noise = torch.randn(1, pipeline.unet.config.in_channels, height, width, generator=generator)
        pixels = pipeline(
            inputs.PROMPT,
            negative_prompt=inputs.NEGATIVE,
            num_inference_steps=inputs.STEPS if call else 1,
            guidance_scale=inputs.GUIDANCE,
            height=8 * height,
            width=8 * width,
            latents=noise.to(pipeline.device, dtype),
            output_type="pt",
        ).images
        return 2 * pixels.float().cpu().numpy() - 1

    return pipeline, draw
