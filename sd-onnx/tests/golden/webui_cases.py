"""The cases of `webui_pictures.py`."""

from make import NEGATIVE, OTHER, PROMPT
from pictures import PICTURES

LATENT = ["Latent", "Latent (antialiased)", "Latent (bicubic)", "Latent (bicubic antialiased)",
          "Latent (nearest)", "Latent (nearest-exact)"]


def case(name, kind, model, options=None, picture=None, mask=None, keep=False, checked=False,
         **fields):
    """Returns a case.

    `fields` are WebUI's fields, with its names and units. With `keep`, the files also have the
    final picture. With `checked`, the script makes all mistakes that the case can show, and
    otherwise only those that belong to what is special in the case."""
    four = model == "four"  # more guidance would amplify rounding in this model
    common = dict(prompt=PROMPT, negative_prompt=NEGATIVE, seed=42, sampler_name="Euler a",
                  scheduler="Automatic", steps=8, cfg_scale=2.0 if four else 5.0)
    return dict(name=name, kind=kind, model=model, options=options or {}, picture=picture,
                mask=mask, keep=keep, checked=checked, fields=common | fields)


def hires(name, upscaler="Latent", model="four", **rest):
    size = dict(width=64, height=64) if model == "four" else dict(width=32, height=32)
    rest = size | dict(enable_hr=True, hr_scale=1.5, denoising_strength=0.7) | rest
    return case(f"hires{'' if model == 'four' else '-xl'}.{name}", "Txt2Img", model,
                hr_upscaler=upscaler, **rest)


def hires_xl(name, upscaler="Latent", **rest):
    return hires(name, upscaler, "families/sdxl-base", **rest)


DPMPP_2M = dict(sampler_name="DPM++ 2M", scheduler="Karras")
DPMPP_SDE = dict(sampler_name="DPM++ SDE", scheduler="Karras")
DDIM = dict(sampler_name="DDIM")
KEYS = ["bilinear", "antialiased", "bicubic", "bicubic-antialiased", "nearest", "nearest-exact"]

HIRES = [
    *(hires(f"{key}-1.5", mode) for key, mode in zip(KEYS, LATENT)),
    *(hires(f"{key}-2", mode, hr_scale=2.0, **DPMPP_2M) for key, mode in zip(KEYS, LATENT)),
    # An interface would not allow it, but here the antialiasing matters.
    *(hires(f"{key}-0.75", mode, hr_scale=0.75) for key, mode in list(zip(KEYS, LATENT))[:4]),
    hires("strength-0.3", denoising_strength=0.3, checked=True, keep=True),
    hires("strength-1", denoising_strength=1.0, checked=True),
    hires("steps-5", hr_second_pass_steps=5, checked=True),
    hires("steps-11", hr_second_pass_steps=11, denoising_strength=0.6, **DPMPP_2M),
    hires("dpmpp-2m", checked=True, **DPMPP_2M),
    hires("dpmpp-sde", checked=True, **DPMPP_SDE),
    hires("dpmpp-sde-steps-5", hr_second_pass_steps=5, denoising_strength=0.3, **DPMPP_SDE),
    hires("ddim", checked=True, **DDIM),
    hires("ddim-0.3", denoising_strength=0.3, hr_second_pass_steps=5, **DDIM),
    hires("ddim-1", denoising_strength=1.0, **DDIM),
    hires("ddim-eta", eta=0.7, **DDIM),
    hires("other-sampler", hr_sampler_name="DPM++ 2M", hr_scheduler="Exponential"),
    hires("other-sampler-sde", hr_sampler_name="DPM++ SDE", **DPMPP_2M),
    hires("other-sampler-ddim", hr_sampler_name="DDIM", **DPMPP_2M),
    hires("from-ddim", hr_sampler_name="Euler a", **DDIM),
    hires("other-scheduler", hr_scheduler="Exponential", **DPMPP_2M),
    hires("other-prompt", hr_prompt=OTHER),
    hires("other-negative", hr_negative_prompt=OTHER),
    hires("wide", hr_resize_x=96, hr_resize_y=64),
    hires("tall-odd-crop", hr_resize_x=72, hr_resize_y=96),
    hires("size-without-multiple", hr_resize_x=100, hr_resize_y=60),
    hires("width-only", hr_resize_x=88, hr_resize_y=0, width=64, height=48),
    hires("height-only", hr_resize_x=0, hr_resize_y=88, width=64, height=48),
    hires("scale-1.3", hr_scale=1.3),
    hires("variation", subseed=7, subseed_strength=0.3),
    hires("seed-resize-smaller", seed_resize_from_w=48, seed_resize_from_h=40),
    hires("seed-resize-between", seed_resize_from_w=80, seed_resize_from_h=72, subseed=7,
          subseed_strength=0.3),
    hires("ensd", options=dict(eta_noise_seed_delta=31337)),
    hires("eta", eta=0.6),
    hires("extra-noise", options=dict(img2img_extra_noise=0.1)),
    hires("two-pictures", batch_size=2),
    hires("two-pictures-sde", batch_size=2, **DPMPP_SDE),
    hires("two-variations", batch_size=2, subseed=7, subseed_strength=0.3),
    hires("lanczos", "Lanczos", checked=True, keep=True),
    hires("lanczos-tall", "Lanczos", hr_resize_x=72, hr_resize_y=96),
    hires("pixels-nearest", "Nearest"),
    hires("none", "None", **DPMPP_2M),
    hires("lanczos-two-pictures", "Lanczos", batch_size=2),
    hires_xl("bilinear-1.5", checked=True, keep=True),
    hires_xl("nearest-exact-2", "Latent (nearest-exact)", hr_scale=2.0, **DPMPP_2M),
    # The size in the time ids is that before the crop.
    hires_xl("wide", hr_resize_x=48, hr_resize_y=32),
    hires_xl("lanczos", "Lanczos"),
]


def img2img(name, picture="square", strength=0.6, model="four", size=None, prefix="img2img",
            **rest):
    width, height = size or PICTURES[picture]
    rest = dict(denoising_strength=strength, width=width, height=height) | rest
    return case(f"{prefix}{'' if model == 'four' else '-xl'}.{name}", "Img2Img", model,
                picture=picture, **rest)


def img2img_xl(name, picture="small", strength=0.6, **rest):
    return img2img(name, picture, strength, "families/sdxl-base", **rest)


SAMPLERS = [("euler-a", {}), ("dpmpp-2m", DPMPP_2M), ("ddim", DDIM), ("dpmpp-sde", DPMPP_SDE)]
FIXED = dict(img2img_fix_steps=True)

IMG2IMG = [
    *(img2img(f"{key}-{strength}", strength=strength, checked=strength == 0.6, **sampler)
      for key, sampler in SAMPLERS[:3] for strength in (0.3, 0.6, 1.0)),
    img2img("dpmpp-sde-0.6", checked=True, **DPMPP_SDE),
    *(img2img(f"{key}-fixed", options=FIXED, checked=True, **sampler) for key, sampler in SAMPLERS),
    img2img("fixed-0.3", strength=0.3, options=FIXED),
    # 0.57 * 100 is less than 57 in double precision.
    img2img("rounding", strength=0.57, steps=100, **DPMPP_2M),
    img2img("multiplier", initial_noise_multiplier=0.8),
    img2img("multiplier-ddim", initial_noise_multiplier=0.8, **DDIM),
    img2img("extra-noise-ddim", options=dict(img2img_extra_noise=0.1), **DDIM),
    img2img("stretched", "large", size=(64, 56), resize_mode=0),
    img2img("cropped", "large", size=(64, 56), resize_mode=1),
    img2img("filled", "large", size=(64, 56), resize_mode=2),
    img2img("filled-tall", "wide", size=(48, 64), resize_mode=2),
    img2img("latent", "wide", size=(64, 64), resize_mode=3),
    img2img("latent-odd", "large", size=(64, 56), resize_mode=3, **DDIM),
    img2img("variation", subseed=7, subseed_strength=0.3),
    img2img("ensd", options=dict(eta_noise_seed_delta=31337)),
    img2img("eta-ddim", eta=0.7, **DDIM),
    img2img("two-pictures", batch_size=2),
    img2img_xl("euler-a", keep=True, checked=True),
    img2img_xl("dpmpp-2m-latent", "tall", size=(48, 48), resize_mode=3, **DPMPP_2M),
]


def inpaint(name, mask="rectangle", fill=1, picture="square", **rest):
    rest = dict(mask_blur=0, inpaint_full_res=False) | rest
    return img2img(name, picture, mask=mask, inpainting_fill=fill, prefix="inpaint", **rest)


def inpaint_xl(name, **rest):
    return inpaint(name, picture="small", model="families/sdxl-base", **rest)


FILLS = ["fill", "original", "noise", "nothing"]
ONLY = dict(picture="large", mask="spot", size=(64, 56), inpaint_full_res=True)

INPAINT = [
    *(inpaint(f"euler-a-{key}", fill=fill, keep=fill == 0, checked=fill == 1)
      for fill, key in enumerate(FILLS)),
    *(inpaint(f"ddim-{key}", fill=fill, checked=fill == 1, **DDIM)
      for fill, key in enumerate(FILLS)),
    inpaint("dpmpp-2m", checked=True, **DPMPP_2M),
    inpaint("dpmpp-sde", checked=True, **DPMPP_SDE),
    inpaint("noise-1", fill=2, strength=1.0),
    inpaint("nothing-1", fill=3, strength=1.0, **DDIM),
    inpaint("blur-4", mask_blur=4, keep=True),
    inpaint("blur-8", mask_blur=8, keep=True, **DDIM),
    inpaint("blur-8-fill", fill=0, mask_blur=8),
    inpaint("blur-x", mask_blur_x=6, mask_blur_y=0, mask_blur=None, keep=True),
    inpaint("soft", mask="soft", keep=True),
    *(inpaint(f"soft-unrounded-{key}", mask="soft", mask_round=False, checked=True, **sampler)
      for key, sampler in SAMPLERS[:3]),
    inpaint("soft-unrounded-noise", mask="soft", mask_round=False, fill=2),
    inpaint("blur-8-unrounded", mask_blur=8, mask_round=False),
    inpaint("inverted", inpainting_mask_invert=1),
    inpaint("stretched", picture="large", mask="soft", size=(64, 56), keep=True),
    inpaint("cropped", picture="large", mask="soft", size=(64, 56), resize_mode=1, keep=True),
    inpaint("filled", picture="large", mask="soft", size=(64, 56), resize_mode=2, keep=True),
    inpaint("only-masked", inpaint_full_res_padding=6, keep=True, checked=True, **ONLY),
    inpaint("only-masked-0", inpaint_full_res_padding=0, keep=True, **ONLY),
    inpaint("only-masked-32", inpaint_full_res_padding=32, keep=True, **ONLY),
    inpaint("only-masked-blur", inpaint_full_res_padding=6, mask_blur=4, keep=True, **ONLY),
    inpaint("only-masked-soft", inpaint_full_res_padding=4, keep=True, fill=0,
            **ONLY | dict(mask="soft", picture="wide")),
    inpaint("only-masked-tall", inpaint_full_res_padding=3, keep=True,
            **ONLY | dict(picture="odd", size=(40, 80)), **DDIM),
    inpaint("nothing", mask="nothing", keep=True),
    inpaint("nothing-ddim", mask="nothing", keep=True, **DDIM),
    inpaint("nothing-only-masked", keep=True, **ONLY | dict(mask="nothing")),
    inpaint("everything", mask="everything", keep=True),
    inpaint("everything-ddim", mask="everything", keep=True, **DDIM),
    inpaint("everything-only-masked", keep=True, **ONLY | dict(mask="everything")),
    inpaint("two-pictures", batch_size=2, fill=2),
    inpaint_xl("euler-a", keep=True, checked=True),
    inpaint_xl("ddim-soft", mask="soft", mask_round=False, **DDIM),
]

CASES = [*HIRES, *IMG2IMG, *INPAINT]
