"""Makes `pictures/`: runs of diffusers' pipelines that start with a picture.

    pip install -r requirements.txt pillow==13.0.0 && python pictures.py [--check NAME …]

The pipelines are img2img, inpainting with 4 and with 9 input channels, and instruct-pix2pix. The
models come from `make.py` and `families.py`. `README.md` describes the files and the rules of
the pipelines.

The script asserts that each mistake moves the final latents of a run by at least ten times the
tolerance of the Rust tests, and that rounding stays well within it. With `--check`, it writes
nothing and checks only the named cases.
"""

import argparse
import contextlib
import json
import shutil
import sys

import diffusers
import numpy
import PIL
import safetensors.torch
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from transformers import CLIPTokenizer

import make
from family_reference import Reference as FamilyReference
from make import HERE, NEGATIVE, PROMPT, relative, settle

OUT = HERE / "pictures"
LEAST = 1e-3  # the least effect of a mistake on the final latents, relative L2
ROUNDING = 3e-5  # the largest effect of rounding
OTHER_SEED = 5

# ---------------------------------------------------------------- cases

EULER = ("EulerDiscreteScheduler", dict(timestep_spacing="leading"))
TRAILING = ("EulerDiscreteScheduler", dict(timestep_spacing="trailing"))
ANCESTRAL = ("EulerAncestralDiscreteScheduler", dict(timestep_spacing="leading"))
HEUN = ("HeunDiscreteScheduler", dict(timestep_spacing="linspace"))
DDIM = ("DDIMScheduler", dict(timestep_spacing="leading", clip_sample=False))
# Pipelines correct parts of these three.
OLD_OFFSET = ("DDIMScheduler", DDIM[1] | dict(steps_offset=0))
OLD_DDIM = ("DDIMScheduler", dict(timestep_spacing="leading", clip_sample=True, steps_offset=0))
OLD_PNDM = ("PNDMScheduler", dict(skip_prk_steps=False, steps_offset=0))
PNDM = ("PNDMScheduler", {})
DPMPP_2M = ("DPMSolverMultistepScheduler", dict(
    algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint", timestep_spacing="leading"))
KARRAS = ("DPMSolverMultistepScheduler", DPMPP_2M[1] | dict(
    use_karras_sigmas=True, timestep_spacing="linspace"))
SDE = ("DPMSolverMultistepScheduler", DPMPP_2M[1] | dict(
    algorithm_type="sde-dpmsolver++", timestep_spacing="linspace"))

IMG2IMG, IMG2IMG_XL = "StableDiffusionImg2ImgPipeline", "StableDiffusionXLImg2ImgPipeline"
INPAINT, INPAINT_XL = "StableDiffusionInpaintPipeline", "StableDiffusionXLInpaintPipeline"
PIX2PIX = "StableDiffusionInstructPix2PixPipeline"

# The sizes of the pictures, and of the masks that belong to them.
PICTURES = {
    "square": (64, 64), "wide": (80, 48), "tall": (40, 56), "small": (48, 32), "odd": (67, 59),
    "large": (100, 70),
}


def case(name, pipeline, model, scheduler, picture, strength=None, mask=None, **rest):
    """Returns a case. `size` is only passed to the inpainting pipelines."""
    found = dict(
        name=name, pipeline=pipeline, model=model, picture=picture, mask=mask, strength=strength,
        steps=10, guidance=5.0, image_guidance=None, seed=42, seeds=None, count=1,
        scheduler=scheduler[0], scheduler_changes=scheduler[1],
        size=PICTURES[picture] if mask else None, padding_mask_crop=None, keep=False)
    assert rest.keys() <= found.keys()
    return found | rest


def img2img(name, scheduler, picture, strength, **rest):
    rest = dict(guidance=2.0) | rest  # more would amplify rounding in this model
    return case(f"img2img.{name}", IMG2IMG, "four", scheduler, picture, strength, **rest)


def img2img_xl(name, scheduler, picture, strength, **rest):
    return case(f"img2img-xl.{name}", IMG2IMG_XL, "families/sdxl-base", scheduler, picture,
                strength, **rest)


def inpaint(name, scheduler, picture, strength, mask="rectangle", **rest):
    rest = dict(guidance=2.0) | rest
    return case(f"inpaint.{name}", INPAINT, "four", scheduler, picture, strength, mask, **rest)


def inpaint_xl(name, scheduler, picture, strength, mask="rectangle", **rest):
    return case(f"inpaint-xl.{name}", INPAINT_XL, "families/sdxl-base", scheduler, picture,
                strength, mask, **rest)


def inpaint_9(name, scheduler, picture, strength, mask="rectangle", **rest):
    return case(f"inpaint-9.{name}", INPAINT, "families/inpaint", scheduler, picture, strength,
                mask, **rest)


def inpaint_9_xl(name, scheduler, picture, strength, mask="rectangle", **rest):
    return case(f"inpaint-9-xl.{name}", INPAINT_XL, "families/inpaint-xl", scheduler, picture,
                strength, mask, **rest)


def pix2pix(name, scheduler, picture, **rest):
    rest = dict(guidance=7.5, image_guidance=1.5) | rest
    return case(f"pix2pix.{name}", PIX2PIX, "families/pix2pix", scheduler, picture, **rest)


CASES = [
    img2img("euler-0.3", EULER, "square", 0.3, keep=True),
    img2img("euler-0.6", EULER, "wide", 0.6),
    img2img("euler-1", EULER, "square", 1.0),
    img2img("dpmpp-2m-0.3", DPMPP_2M, "square", 0.3),
    img2img("dpmpp-2m-0.6", DPMPP_2M, "wide", 0.6),
    img2img("dpmpp-2m-karras-1", KARRAS, "square", 1.0),
    img2img("ddim-0.3", DDIM, "square", 0.3),
    img2img("ddim-0.6", OLD_DDIM, "square", 0.6),
    img2img("ddim-1", DDIM, "wide", 1.0),
    img2img("ancestral-0.6", ANCESTRAL, "square", 0.6),
    img2img("sde-0.6", SDE, "wide", 0.6),
    # Each step of Heun but the last calls the network twice.
    img2img("heun-0.6", HEUN, "square", 0.6),
    img2img("pndm-0.6", PNDM, "square", 0.6),
    # 0.57 * 100 is less than 57 in double precision, so the run has 56 steps.
    img2img("rounding", DDIM, "square", 0.57, steps=100),
    img2img("odd-size", EULER, "odd", 0.6, keep=True),
    img2img("no-guidance", TRAILING, "square", 0.6, guidance=1.0),
    img2img("two-pictures", ANCESTRAL, "square", 0.6, count=2),
    img2img("two-seeds", ANCESTRAL, "square", 0.6, count=2, seed=None, seeds=[42, 7]),
    img2img_xl("euler-0.3", EULER, "square", 0.3, keep=True),
    img2img_xl("euler-0.6", EULER, "small", 0.6),
    img2img_xl("euler-1", TRAILING, "small", 1.0),
    img2img_xl("dpmpp-2m-0.6", DPMPP_2M, "tall", 0.6),
    img2img_xl("ddim-0.6", OLD_DDIM, "small", 0.6),
    img2img_xl("ancestral-0.6", ANCESTRAL, "small", 0.6),
    img2img_xl("odd-size", EULER, "odd", 0.3),
    inpaint("euler-0.6", EULER, "square", 0.6, keep=True),
    inpaint("euler-1", EULER, "wide", 1.0),
    inpaint("euler-trailing-1", TRAILING, "square", 1.0),
    inpaint("dpmpp-2m-0.6", DPMPP_2M, "square", 0.6, mask="soft"),
    inpaint("dpmpp-2m-1", KARRAS, "wide", 1.0, mask="soft"),
    inpaint("ddim-0.6", DDIM, "wide", 0.6, mask="soft"),
    inpaint("ddim-1", OLD_OFFSET, "square", 1.0),
    inpaint("pndm-1", OLD_PNDM, "square", 1.0),
    inpaint("heun-0.6", HEUN, "square", 0.6),
    inpaint("ancestral-0.6", ANCESTRAL, "square", 0.6),
    inpaint("ancestral-1", ANCESTRAL, "square", 1.0, mask="soft"),
    inpaint("no-guidance", EULER, "square", 0.6, guidance=1.0),
    inpaint("two-pictures", ANCESTRAL, "square", 0.6, count=2),
    inpaint("two-seeds", ANCESTRAL, "square", 0.6, count=2, seed=None, seeds=[42, 7]),
    # Picture and mask are resized to `size`.
    inpaint("resized", EULER, "large", 0.6, mask="soft", size=(64, 56)),
    inpaint("crop", EULER, "large", 0.6, mask="spot", size=(64, 56), padding_mask_crop=6, keep=True),
    inpaint_xl("euler-0.6", EULER, "square", 0.6, keep=True),
    inpaint_xl("euler-1", EULER, "small", 1.0),
    inpaint_xl("dpmpp-2m-0.6", DPMPP_2M, "tall", 0.6, mask="soft"),
    inpaint_xl("ddim-1", OLD_OFFSET, "small", 1.0, mask="soft"),
    inpaint_xl("ancestral-0.6", ANCESTRAL, "small", 0.6),
    inpaint_9("ddim-1", DDIM, "small", 1.0, keep=True),
    inpaint_9("ddim-0.6", DDIM, "tall", 0.6),
    inpaint_9("euler-1", EULER, "small", 1.0, mask="soft"),
    inpaint_9("euler-0.6", EULER, "small", 0.6, mask="soft"),
    inpaint_9("ancestral-1", ANCESTRAL, "small", 1.0),
    inpaint_9("ancestral-0.6", ANCESTRAL, "small", 0.6),
    inpaint_9_xl("euler-1", EULER, "small", 1.0),
    inpaint_9_xl("euler-0.6", EULER, "small", 0.6, mask="soft"),
    pix2pix("euler", EULER, "small", keep=True),
    pix2pix("image-guidance-1", EULER, "small", image_guidance=1.0),
    pix2pix("image-guidance-0.9", EULER, "small", image_guidance=0.9),
    pix2pix("ancestral", ANCESTRAL, "tall"),
    pix2pix("ddim", DDIM, "odd"),
]

# ---------------------------------------------------------------- pictures and masks


def picture(name):
    """Returns a picture with gradients, a checkerboard, a disc and a bar."""
    width, height = PICTURES[name]
    rows, columns = numpy.mgrid[:height, :width]
    pixels = numpy.stack([
        columns * 255 // (width - 1), rows * 255 // (height - 1),
        40 + (columns // 6 + rows // 6) % 2 * 150], axis=-1)
    disc = (columns - width * 3 // 5) ** 2 + (rows - height * 2 // 5) ** 2 < (height // 4) ** 2
    pixels[disc] = 230, 60, 40
    pixels[height * 3 // 4 : height * 7 // 8, 5 : width - 9] = 20, 220, 200
    return pixels.astype(numpy.uint8)


def mask(kind, name):
    """Returns a mask of the size of a picture: 255 where something new is drawn."""
    width, height = PICTURES[name]
    rows, columns = numpy.mgrid[:height, :width]
    if kind == "soft":  # a disc with a wide, soft border, which has all shades of grey
        far = numpy.hypot(columns - width * 0.45, rows - height * 0.55) / (min(width, height) / 2)
        return numpy.clip(numpy.round((1.3 - far) * 196), 0, 255).astype(numpy.uint8)
    found = numpy.zeros((height, width), numpy.uint8)
    if kind == "spot":
        found[height - 22 : height - 9, 11:25] = 255
    else:  # no side is at a multiple of 8 or 4
        found[9 : height - 13, 11 : width - 17] = 255
    return found


# ---------------------------------------------------------------- running the pipelines


class Model:
    """The components of a small model."""

    def __init__(self, name):
        self.name = name
        if name == "four":
            shape = make.SHAPES[name]
            models = make.build(shape, make.read_recipes(name))
            self.parts = {k: models[k] for k in ("text_encoder", "unet", "vae")}
            self.parts["tokenizer"] = CLIPTokenizer.from_pretrained(HERE / "tokenizer")
            self.scheduler, self.is_xl, self.options = models["scheduler"], False, {}
        else:
            reference = FamilyReference(name.removeprefix("families/"))
            names = [f"text_encoder{s}" for s in ("", "_2") if f"text_encoder{s}" in reference.models]
            self.parts = {k: reference.models[k] for k in [*names, "unet", "vae"]}
            for part, tower in zip(names, reference.towers):
                self.parts[part.replace("text_encoder", "tokenizer")] = tower.tokenizer
            self.scheduler, self.is_xl = reference.models["scheduler"], reference.is_xl
            self.options = reference.shape.get("options", {})

    def pipeline(self, case):
        """Builds the pipeline of a case with its scheduler, so that the class can correct it."""
        kind = getattr(diffusers, case["scheduler"])
        scheduler = kind.from_config(self.scheduler.config, **case["scheduler_changes"])
        return build(case["pipeline"], scheduler, self.parts, self.options)

    @contextlib.contextmanager
    def doubled(self):
        networks = [part for part in self.parts.values() if isinstance(part, torch.nn.Module)]
        for network in networks:
            network.double()
        try:
            yield
        finally:
            for network in networks:
                network.float()


def build(kind, scheduler, parts, options):
    if "XL" in kind:
        options = dict(add_watermarker=False) | options
    else:
        options = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    built = getattr(diffusers, kind)(scheduler=scheduler, **parts, **options)
    built.set_progress_bar_config(disable=True)
    return built


class Draws:
    """Replaces `torch.randn` and records each draw with its purpose.

    `posterior` and `masked` are for the samples of the autoencoder's latents of the picture and of
    the masked picture, `noise` is the first noise, and `step` is noise of the scheduler. The values
    are always drawn in float32. `mistake` may be:

    - "noise first": the first noise is drawn before the sample of the picture's latents;
    - "masked picture not drawn": nothing is drawn for the masked picture."""

    def __init__(self, mistake=None):
        self.found, self.mistake, self.kept = [], mistake, None

    def __enter__(self):
        self.randn = torch.randn
        torch.randn = self.draw
        return self

    def __exit__(self, *_):
        torch.randn = self.randn

    def draw(self, *size, generator=None, dtype=None, device=None, layout=None):
        assert generator is not None
        size, purpose = tuple(torch.zeros(*size).shape), self.purpose()
        if self.mistake == "masked picture not drawn" and purpose == "masked":
            return torch.zeros(size, dtype=dtype)
        values = self.randn(size, generator=generator)
        if self.mistake == "noise first":
            if purpose == "posterior" and self.kept is None:
                values, self.kept = self.randn(size, generator=generator), values
            elif purpose == "noise" and self.kept is not None:
                # The generator has drawn this noise already.
                generator.set_state(self.state)
                values, self.kept = self.kept, None
        self.state = generator.get_state()
        self.found.append((purpose, values))
        return values.to(dtype or torch.float32)

    @staticmethod
    def purpose():
        frame, callers = sys._getframe(), set()
        while frame:
            callers.add(frame.f_code.co_name)
            frame = frame.f_back
        if "retrieve_latents" in callers:
            return "masked" if "prepare_mask_latents" in callers else "posterior"
        if "prepare_latents" in callers:
            return "noise"
        assert "step" in callers
        return "step"


class Run:
    """A run of a case, with everything that its tensors need.

    `changes` are changed values of the case. The other arguments make mistakes: `mistake` is for
    `Draws`, `spoil` gets the pipeline before the run, and the last two change the pixels."""

    def __init__(self, model, case, mistake=None, spoil=None, edit_picture=None, edit_mask=None,
                 **changes):
        case = case | changes
        pixels = picture(case["picture"])
        pixels = edit_picture(pixels) if edit_picture else pixels
        self.model, self.case = model, case
        pipeline = model.pipeline(case)
        self.pipeline, self.scheduler = pipeline, pipeline.scheduler
        self.timesteps, self.steps, self.blends = [], [], []
        self.initial = self.image_latents = self.mask = self.masked_latents = None
        self.prepared = self.prepared_mask = None
        if spoil:
            spoil(pipeline)
        self.watch(pipeline)
        options = dict(
            prompt=PROMPT, negative_prompt=NEGATIVE, image=Image.fromarray(pixels),
            num_inference_steps=case["steps"], guidance_scale=case["guidance"],
            num_images_per_prompt=case["count"], generator=generators(case), output_type="pil",
            callback_on_step_end=self.step)
        if case["strength"] is not None:
            options["strength"] = case["strength"]
        if case["mask"]:
            pixels = mask(case["mask"], case["picture"])
            options["mask_image"] = Image.fromarray(edit_mask(pixels) if edit_mask else pixels)
            options |= dict(width=case["size"][0], height=case["size"][1])
            options["padding_mask_crop"] = case["padding_mask_crop"]
        if case["image_guidance"] is not None:
            options["image_guidance_scale"] = case["image_guidance"]
        with Draws(mistake) as draws:
            images = pipeline(**options).images
        self.draws, self.latents = draws.found, self.steps[-1]
        self.images = numpy.stack([numpy.array(image) for image in images])

    def watch(self, pipeline):
        """Records the inputs and the outputs of the pipeline's own steps."""
        scheduler, count = pipeline.scheduler, self.case["count"]
        scale, add = scheduler.scale_model_input, scheduler.add_noise

        def scale_model_input(sample, timestep):
            if self.initial is None:
                self.initial = sample[:count].clone()
            self.timesteps.append(float(timestep))
            return scale(sample, timestep)

        def add_noise(latents, noise, timesteps):
            if self.image_latents is None:
                self.image_latents = latents.clone()
            return add(latents, noise, timesteps)

        scheduler.scale_model_input, scheduler.add_noise = scale_model_input, add_noise
        processor = pipeline.image_processor
        preprocess = processor.preprocess

        def preprocessed(*arguments, **options):
            self.prepared = preprocess(*arguments, **options)
            return self.prepared

        processor.preprocess = preprocessed
        if hasattr(pipeline, "mask_processor"):
            mask_preprocess = pipeline.mask_processor.preprocess

            def preprocessed_mask(*arguments, **options):
                self.prepared_mask = mask_preprocess(*arguments, **options)
                return self.prepared_mask

            pipeline.mask_processor.preprocess = preprocessed_mask
            prepare_mask = pipeline.prepare_mask_latents

            def prepare_mask_latents(*arguments, **options):
                small, masked = prepare_mask(*arguments, **options)
                self.mask, self.masked_latents = small[:1], masked[:1]
                return small, masked

            pipeline.prepare_mask_latents = prepare_mask_latents
        if hasattr(pipeline, "prepare_image_latents"):
            prepare_image = pipeline.prepare_image_latents

            def prepare_image_latents(*arguments, **options):
                found = prepare_image(*arguments, **options)
                self.image_latents = found[:1]
                return found

            pipeline.prepare_image_latents = prepare_image_latents

    def step(self, pipeline, index, timestep, tensors):
        self.steps.append(tensors["latents"].clone())
        return {}


def generators(case):
    if case["seeds"]:
        return [torch.Generator().manual_seed(seed) for seed in case["seeds"]]
    return torch.Generator().manual_seed(case["seed"])


# ---------------------------------------------------------------- records


def pixels_of(image):
    """Returns the bytes of a picture from -1 to 1, and asserts that no digit is lost."""
    found = ((image[0].permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(2.0 * (found.to(torch.float32) / 255) - 1.0, image[0].permute(1, 2, 0))
    return found


def record(run, tensors):
    """Stores the tensors of a run and returns its entry in `cases.json`."""
    case, name = run.case, run.case["name"]
    found = {k: v for k, v in case.items() if k not in ("size", "keep")}
    width, height = run.prepared.shape[3], run.prepared.shape[2]
    config = {k: v for k, v in run.scheduler.config.items() if not k.startswith("_")}
    found |= dict(
        prompt=PROMPT, negative=NEGATIVE, width=width, height=height, scheduler_config=config,
        first_timestep=len(run.scheduler.timesteps) - len(run.timesteps),
        timesteps=run.timesteps, draws=[dict(purpose=p, shape=list(v.shape)) for p, v in run.draws])
    tensors[f"picture.{case['picture']}"] = torch.from_numpy(picture(case["picture"]))
    if case["mask"]:
        kind = f"mask.{case['mask']}.{case['picture']}"
        tensors[kind] = torch.from_numpy(mask(case["mask"], case["picture"]))
        found["mask"] = kind
        assert set(run.mask.unique().tolist()) == {0.0, 1.0}
        tensors[f"{name}.mask"] = run.mask.to(torch.uint8)
        tensors[f"{name}.masked_latents"] = run.masked_latents
        if case["padding_mask_crop"] is not None:
            found["crop"] = list(run.pipeline.mask_processor.get_crop_region(
                Image.fromarray(mask(case["mask"], case["picture"])), *case["size"],
                pad=case["padding_mask_crop"]))
    found["picture"] = f"picture.{case['picture']}"
    if (width, height) != PICTURES[case["picture"]]:
        tensors[f"{name}.resized"] = pixels_of(run.prepared)
        if case["mask"]:
            tensors[f"{name}.resized_mask"] = run.prepared_mask[0, 0].to(torch.uint8)
    for index, (_, values) in enumerate(run.draws):
        tensors[f"{name}.draw.{index}"] = values
    if run.image_latents is not None:
        tensors[f"{name}.image_latents"] = run.image_latents
    tensors[f"{name}.initial"] = run.initial
    tensors[f"{name}.step.0"] = run.steps[0]
    tensors[f"{name}.latents"] = run.latents
    if case["keep"]:
        tensors[f"{name}.image"] = torch.from_numpy(run.images[0].copy())
        moments = run.model.parts["vae"].encode(run.prepared).latent_dist
        tensors |= {f"{name}.mean": moments.mean, f"{name}.logvar": moments.logvar}
    return found


def starts():
    """Returns which timesteps are left for a number of steps and a strength."""
    found = []
    numbers = (1, 2, 4, 7, 10, 20, 25, 30, 50, 100)
    strengths = (0.0, 0.05, 0.1, 0.28, 0.29, 0.3, 0.5, 0.55, 0.57, 0.58, 0.6, 0.7, 0.75, 0.8, 0.9,
                 0.999, 1.0)
    for kind, numbers in ((diffusers.DDIMScheduler, numbers), (diffusers.HeunDiscreteScheduler, (4, 10))):
        scheduler = kind()
        pipeline = build(IMG2IMG, scheduler, dict.fromkeys(("vae", "text_encoder", "tokenizer", "unet")), {})
        for steps in numbers:
            scheduler.set_timesteps(steps)
            for strength in strengths:
                timesteps, left = pipeline.get_timesteps(steps, strength, "cpu")
                first = len(scheduler.timesteps) - len(timesteps)
                found.append(dict(scheduler=kind.__name__, order=scheduler.order, steps=steps,
                                  strength=strength, first_timestep=first, steps_left=left))
    # Some of the products need double precision.
    assert any(int(numpy.float32(f["steps"]) * numpy.float32(f["strength"])) != f["steps_left"]
               for f in found)
    return found


def corrections():
    """Returns the configuration that each class leaves in a scheduler of outdated values."""
    found = []
    pairs = [("DDIMScheduler", dict(steps_offset=0, clip_sample=True)),
             ("DDIMScheduler", dict(steps_offset=1, clip_sample=False)),
             ("DDIMScheduler", dict(steps_offset=5, clip_sample=False)),
             ("EulerDiscreteScheduler", dict(steps_offset=0)),
             ("DPMSolverMultistepScheduler", dict(steps_offset=0)),
             ("PNDMScheduler", dict(steps_offset=0, skip_prk_steps=False)),
             ("PNDMScheduler", dict(steps_offset=1, skip_prk_steps=True))]
    kinds = ["StableDiffusionPipeline", IMG2IMG, INPAINT, PIX2PIX, "StableDiffusionXLPipeline",
             IMG2IMG_XL, INPAINT_XL, "StableDiffusionXLInstructPix2PixPipeline"]
    for kind in kinds:
        for name, values in pairs:
            scheduler = getattr(diffusers, name)(**values)
            names = ["vae", "text_encoder", "tokenizer", "unet"]
            names += ["text_encoder_2", "tokenizer_2"] if "XL" in kind else []
            built = build(kind, scheduler, dict.fromkeys(names), {})
            after = {k: built.scheduler.config[k] for k in values}
            found.append(dict(pipeline=kind, scheduler=name, before=values, after=after))
    return found


def crop_regions(tensors):
    """Returns the region around a mask that `padding_mask_crop` redraws."""
    found = []
    for name, kind, size, pad in [
        ("large", "spot", (64, 56), 0), ("large", "spot", (64, 56), 6), ("large", "spot", (64, 56), 32),
        ("large", "rectangle", (64, 64), 4), ("large", "soft", (96, 32), 3), ("wide", "rectangle", (40, 80), 5),
        ("odd", "spot", (64, 64), 1), ("tall", "rectangle", (128, 32), 0),
    ]:
        processor = diffusers.image_processor.VaeImageProcessor()
        region = processor.get_crop_region(Image.fromarray(mask(kind, name)), *size, pad=pad)
        tensors[f"mask.{kind}.{name}"] = torch.from_numpy(mask(kind, name))
        found.append(dict(mask=f"mask.{kind}.{name}", width=size[0], height=size[1], pad=pad,
                          region=list(region)))
    return found


def blurs(tensors):
    """Blurs masks as a caller may do before a run. The pipelines themselves never blur."""
    found = []
    for kind, name, factor in [("rectangle", "square", 4), ("spot", "large", 1.5), ("spot", "large", 33)]:
        plain = Image.fromarray(mask(kind, name))
        blurred = diffusers.image_processor.VaeImageProcessor.blur(plain, blur_factor=factor)
        key = f"blur.{kind}.{name}.{factor}"
        tensors[f"mask.{kind}.{name}"] = torch.from_numpy(mask(kind, name))
        tensors[key] = torch.from_numpy(numpy.array(blurred))
        found.append(dict(name=key, mask=f"mask.{kind}.{name}", blur_factor=factor))
    return found


# ---------------------------------------------------------------- mistakes


@contextlib.contextmanager
def patched(owner, name, value):
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def mode_of(posterior, generator=None):
    diffusers.utils.torch_utils.randn_tensor(posterior.mean.shape, generator=generator)
    return posterior.mean


def area(original):
    def interpolate(input, size=None, **options):
        if input.shape[1] == 1 and not options:
            return original(input, size=size, mode="area")
        return original(input, size=size, **options)
    return interpolate


def blends_with(change):
    """Returns a spoiler that changes the noisy latents with which the steps are blended."""
    def spoil(pipeline):
        add = pipeline.scheduler.add_noise

        def add_noise(latents, noise, timesteps):
            # The pipeline itself calls this for the blend, and `prepare_latents` for the start.
            if sys._getframe(2).f_code.co_name == "__call__":
                return change(add, latents, noise, timesteps)
            return add(latents, noise, timesteps)
        pipeline.scheduler.add_noise = add_noise
    return spoil


def other_noise(add, latents, noise, timesteps):
    other = torch.Generator().manual_seed(OTHER_SEED)
    return add(latents, torch.empty_like(noise).normal_(generator=other), timesteps)


def starts_from(pure):
    """Returns a spoiler that starts with noise alone, or with noise and the picture."""
    def spoil(pipeline):
        if not hasattr(pipeline, "mask_processor"):
            add = pipeline.scheduler.add_noise
            pipeline.scheduler.add_noise = lambda latents, noise, timesteps: add(latents * 0, noise, timesteps)
            return
        prepare = pipeline.prepare_latents
        pipeline.prepare_latents = lambda *a, **k: prepare(*a, **k | dict(is_strength_max=pure))
    return spoil


def mistakes(run):
    """Returns how far each mistake moves the final latents of a run."""
    model, case = run.model, run.case
    purposes = [purpose for purpose, _ in run.draws]
    wrong = {}

    def far(what, mistake=None, spoil=None, **changes):
        wrong[what] = relative(run.latents, Run(model, case, mistake, spoil, **changes).latents)

    def whole_picture(pipeline):
        prepare = pipeline.prepare_mask_latents
        pipeline.prepare_mask_latents = lambda mask, _, *rest: prepare(mask, run.prepared, *rest)

    far("another picture", edit_picture=lambda pixels: pixels[:, ::-1].copy())
    far("another seed", seed=OTHER_SEED, seeds=[OTHER_SEED, 6] if case["seeds"] else None)
    if case["strength"] is not None:
        far("one step less", strength=case["strength"] - 1 / case["steps"])
    if "posterior" in purposes:
        with patched(DiagonalGaussianDistribution, "sample", mode_of):
            far("the mode of the latents of the picture")
        if not case["seeds"] and case["count"] == 1:
            far("the noise drawn first", "noise first")
    if case["mask"]:
        nine = model.parts["unet"].config.in_channels == 9
        if nine or "step" in purposes:
            far("the masked picture not drawn", "masked picture not drawn")
        far("a mask shifted by 8 pixels", edit_mask=lambda pixels: numpy.roll(pixels, 8, axis=1))
        with patched(torch.nn.functional, "interpolate", area(torch.nn.functional.interpolate)):
            far("a mask resized by area")
        if case["mask"] == "soft":
            with patched(diffusers.image_processor.VaeImageProcessor, "binarize", lambda self, image: image):
                far("a mask with shades of grey")
        if nine:
            far("the whole picture in place of the masked one", spoil=whole_picture)
        elif len(run.timesteps) > 1:
            far("blended with other noise", spoil=blends_with(other_noise))
            far("blended without noise", spoil=blends_with(lambda add, latents, noise, t: latents))
        if case["strength"] == 1.0 and not nine:
            far("noise added to the picture at strength 1", spoil=starts_from(False))
    elif case["strength"] == 1.0:
        far("noise alone at strength 1", spoil=starts_from(True))
    if case["image_guidance"] and case["image_guidance"] >= 1:
        far("image guidance + 0.1", image_guidance=case["image_guidance"] + 0.1)
    if case["guidance"] > 1 and (case["image_guidance"] or 1) >= 1:
        far("guidance + 0.5", guidance=case["guidance"] + 0.5)
    return wrong


# ---------------------------------------------------------------- main


def main():
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [case["name"] for case in CASES]
    assert len(set(names)) == len(names)
    arguments.add_argument("--check", nargs="+", choices=names, metavar="NAME")
    arguments = arguments.parse_args()
    settle()
    assert PIL.__version__ == "13.0.0", PIL.__version__

    models, tensors, entries, least = {}, {}, [], {}
    runs, failed, rounding = {}, [], 0.0
    for case in CASES:
        name = case["name"]
        if arguments.check and name not in arguments.check:
            continue
        model = models.setdefault(case["model"], None) or Model(case["model"])
        models[case["model"]] = model
        run = runs[name] = Run(model, case)
        replayed(run)
        rules(run)
        entries.append(record(run, tensors))
        wrong = mistakes(run)
        with model.doubled():
            moved = relative(run.latents, Run(model, case).latents)
        print(name, [p for p, _ in run.draws][:4], f"rounding {moved:.1g}",
              {k: float(f"{v:.2g}") for k, v in wrong.items()}, flush=True)
        rounding = max(rounding, moved)
        if moved > ROUNDING:
            failed.append((name, "rounding", moved))
        for what, far in wrong.items():
            least[what] = min(least.get(what, (far, name)), (far, name))
            if far < LEAST:
                failed.append((name, what, far))
    print("| mistake | least effect | case |\n|---|---|---|")
    for what, (far, name) in sorted(least.items()):
        print(f"| {what} | {far:.2g} | `{name}` |")
    print(f"rounding: {rounding:.1g}")
    assert not failed, failed
    if arguments.check:
        return
    batches(runs)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    write(tensors, entries)


def replayed(run):
    """Asserts that one generator makes all draws of a run, in their order."""
    if run.case["seeds"]:
        return
    generator = generators(run.case)
    for _, values in run.draws:
        assert torch.equal(values, torch.randn(values.shape, generator=generator))


def rules(run):
    """Asserts some of the rules in the README on the values of a run."""
    case, vae = run.case, run.model.parts["vae"]
    strength = 1.0 if case["strength"] is None else case["strength"]
    first = len(run.scheduler.timesteps) - len(run.timesteps)
    assert first == (case["steps"] - int(case["steps"] * strength)) * run.scheduler.order
    kinds = [purpose for purpose, _ in run.draws]
    draws = {kind: torch.cat([v for k, v in run.draws if k == kind]) for kind in kinds}
    pure = case["image_guidance"] is not None or (case["mask"] and strength == 1.0)
    nine = case["mask"] and run.model.parts["unet"].config.in_channels == 9
    assert ("posterior" in draws) == (case["image_guidance"] is None and not (nine and pure))
    assert kinds == sorted(kinds, key=["posterior", "noise", "masked", "step"].index)

    posterior = vae.encode(run.prepared).latent_dist
    scale = vae.config.scaling_factor
    if "posterior" in draws:
        sample = posterior.mean + torch.exp(posterior.logvar / 2) * draws["posterior"]
        assert relative(run.image_latents, (sample * scale).expand_as(run.image_latents)) < 1e-6
    elif case["image_guidance"] is not None:
        assert torch.equal(run.image_latents, posterior.mean)
    if pure:
        start = draws["noise"] * run.scheduler.init_noise_sigma
    elif case["scheduler"].startswith(("Euler", "Heun")):
        start = run.image_latents + run.scheduler.sigmas[first] * draws["noise"]
    else:
        alpha = run.scheduler.alphas_cumprod[int(run.timesteps[0])]
        if case["scheduler"].startswith("DPM"):
            alpha = 1 / (run.scheduler.sigmas[first] ** 2 + 1)
        start = alpha ** 0.5 * run.image_latents + (1 - alpha) ** 0.5 * draws["noise"]
    assert relative(run.initial, start) < 1e-6

    if case["mask"]:
        cut = run.prepared_mask
        if PICTURES[case["picture"]] == case["size"]:
            plain = torch.from_numpy(mask(case["mask"], case["picture"]))
            assert torch.equal(cut[0, 0], (plain >= 128).float())
        factor = cut.shape[3] // run.mask.shape[3]
        assert torch.equal(run.mask, cut[:, :, ::factor, ::factor])
        masked = vae.encode(run.prepared * (cut < 0.5)).latent_dist
        masked = masked.mean + torch.exp(masked.logvar / 2) * draws["masked"]
        assert relative(run.masked_latents, masked * scale) < 1e-6
        if not nine:
            kept = (run.mask == 0).expand_as(run.latents)
            assert torch.equal(run.latents[kept], run.image_latents[kept])


def batches(runs):
    """Asserts what is said in the README about pictures that are drawn together."""
    model = runs["img2img.two-seeds"].model
    for name in ("img2img", "inpaint"):
        run = runs[f"{name}.two-seeds"]
        alone = [Run(model, run.case, seed=seed, seeds=None, count=1).latents for seed in run.case["seeds"]]
        far = [relative(a, run.latents[i : i + 1]) for i, a in enumerate(alone)]
        print(f"{name}: two seeds against single runs {far}")
        assert far[0] < ROUNDING and (far[1] < ROUNDING) == (name == "img2img")


def write(tensors, entries):
    lists = dict(starts=starts(), corrections=corrections(), crop_regions=crop_regions(tensors),
                 blurs=blurs(tensors), cases=entries)
    tensors = {k: v.contiguous() for k, v in tensors.items()}
    assert all(torch.isfinite(v).all() for v in tensors.values())
    safetensors.torch.save_file(tensors, OUT / "pictures.safetensors")
    (OUT / "pictures.safetensors").chmod(0o644)
    text = ",\n".join(
        f'"{key}": [\n' + ",\n".join(json.dumps(entry) for entry in entries) + "\n]"
        for key, entries in lists.items())
    (OUT / "cases.json").write_text("{" + text + "}\n")
    print({file.name: file.stat().st_size for file in OUT.iterdir()})


if __name__ == "__main__":
    main()
