"""Makes pipelines.json and pipelines.safetensors: how diffusers' pipeline classes correct outdated
configurations when they are built. `src/corrections.rs` and `tests/corrections.rs` read them.

    pip install -r requirements.txt && python pipelines.py

| in pipelines.json | |
|---|---|
| `schedulers` | a pipeline class, a scheduler file, and the `steps_offset` and `clip_sample` of the pipeline, null where there is none; `changes`: how many of the two the pipeline changed |
| `unets` | a pipeline class, a UNet's file, and the `sample_size` of the pipeline |
| `run` | the shape (see `make.py`), its scheduler file, and the request of the run in pipelines.safetensors |

The run uses a DDIM file without `clip_sample` and `steps_offset`, both of which the pipeline
corrects. The script asserts that each correction moves the final latents by far more than the
tolerance.
"""

import json
import logging
import warnings
from importlib.metadata import version

import diffusers
import safetensors.torch
import torch
from diffusers import (
    CycleDiffusionPipeline,
    LatentConsistencyModelPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from make import GUIDANCE, HERE, NEGATIVE, PROMPT, SEED, SHAPES, TOLERANCE, build, read_recipes, relative
from transformers import CLIPTokenizer

CLASSES = [
    CycleDiffusionPipeline, LatentConsistencyModelPipeline, StableDiffusionControlNetPipeline, StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline, StableDiffusionInstructPix2PixPipeline, StableDiffusionPAGPipeline, StableDiffusionPipeline,
]
SCHEDULERS = [
    "DDIMParallelScheduler", "DDIMScheduler", "DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler", "LCMScheduler", "LMSDiscreteScheduler", "PNDMScheduler", "TCDScheduler", "UniPCMultistepScheduler",
]
OPTIONS = [
    {}, dict(steps_offset=0), dict(steps_offset=1), dict(steps_offset=7), dict(clip_sample=False, steps_offset=1),
    dict(clip_sample=True, steps_offset=1), dict(clip_sample=True), dict(clip_sample=False),
]
SHAPE, STEPS = "four", 8
MISSING = object()


def pipeline(kind, scheduler, unet=None, **parts):
    parts = dict(vae=None, text_encoder=None, tokenizer=None, safety_checker=None, feature_extractor=None) | parts
    if kind is StableDiffusionControlNetPipeline:
        parts |= dict(controlnet=None)
    built = kind(unet=unet, scheduler=scheduler, requires_safety_checker=False, **parts)
    built.set_progress_bar_config(disable=True)
    return built


def scheduler_case(kind, name, options):
    file = dict(_class_name=name, **options)
    scheduler = getattr(diffusers, name).from_config(file)
    before = [scheduler.config.get(key, MISSING) for key in ("steps_offset", "clip_sample")]
    built = pipeline(kind, scheduler)
    after = [built.scheduler.config.get(key, MISSING) for key in ("steps_offset", "clip_sample")]
    offset, clip = [None if value is MISSING else value for value in after]
    return dict(pipeline=kind.__name__, file=file, steps_offset=offset, clip_sample=clip,
                changes=sum(a is not b and a != b for a, b in zip(before, after)))


def unet_case(kind, diffusers_version, size):
    unet = UNet2DConditionModel(block_out_channels=[4], down_block_types=["DownBlock2D"], up_block_types=["UpBlock2D"],
                                norm_num_groups=2, cross_attention_dim=4, layers_per_block=1, mid_block_type=None, sample_size=size)
    file = dict(sample_size=size)
    if diffusers_version:
        unet.register_to_config(_diffusers_version=diffusers_version)
        file["_diffusers_version"] = diffusers_version
    built = pipeline(kind, diffusers.DDIMScheduler(), unet)
    return dict(pipeline=kind.__name__, file=file, sample_size=built.unet.config.sample_size)


def run(models, file, width, height, **uncorrected):
    built = pipeline(StableDiffusionPipeline, diffusers.DDIMScheduler.from_config(file), models["unet"], vae=models["vae"],
                     text_encoder=models["text_encoder"], tokenizer=CLIPTokenizer.from_pretrained(HERE / "tokenizer"))
    built.scheduler.register_to_config(**uncorrected)
    return built(PROMPT, negative_prompt=NEGATIVE, width=width, height=height, num_inference_steps=STEPS,
                 guidance_scale=GUIDANCE, generator=torch.Generator().manual_seed(SEED), output_type="latent").images


def main():
    for line in (HERE / "requirements.txt").read_text().split():
        name, wanted = line.split("==")
        assert version(name).split("+")[0] == wanted, f"{name} is {version(name)}, expected {wanted}"
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.set_grad_enabled(False)
    warnings.filterwarnings("ignore")
    diffusers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)

    schedulers = [scheduler_case(kind, name, options) for kind in CLASSES for name in SCHEDULERS for options in OPTIONS]
    versions = [None, "0.1.3", "0.4.0.dev0", "0.6.0", "0.8.1", "0.9.0.dev0", "0.9.0", "0.10.2", "1.0.0"]
    unets = [unet_case(StableDiffusionPipeline, v, size) for v in versions for size in (32, 63, 64, 96, (32, 48))]
    unets += [unet_case(kind, "0.6.0", 32) for kind in CLASSES if kind is not CycleDiffusionPipeline]

    models = build(SHAPES[SHAPE], read_recipes(SHAPE))
    width, height = SHAPES[SHAPE]["size"]
    file = dict(_class_name="DDIMScheduler", beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", set_alpha_to_one=False)
    latents = run(models, file, width, height)
    for key in ("steps_offset", "clip_sample"):
        value = diffusers.DDIMScheduler.from_config(file).config[key]
        moved = relative(latents, run(models, file, width, height, **{key: value}))
        print(f"without the correction of {key}: {moved:.2g}")
        assert moved >= 100 * TOLERANCE

    request = dict(shape=SHAPE, scheduler=file, prompt=PROMPT, negative=NEGATIVE, width=width, height=height, steps=STEPS,
                   guidance=GUIDANCE, seed=SEED)
    lines = lambda cases: "[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]"
    text = f'{{"schedulers": {lines(schedulers)},\n"unets": {lines(unets)},\n"run": {json.dumps(request)}}}\n'
    (HERE / "pipelines.json").write_text(text)
    safetensors.torch.save_file({"latents": latents.contiguous()}, HERE / "pipelines.safetensors")
    (HERE / "pipelines.safetensors").chmod(0o644)
    print(len(schedulers), len(unets), list(latents.shape))


if __name__ == "__main__":
    main()
