"""Mistakes in the runs of `webui_pictures.py`, and how far they move the results."""

import contextlib
from unittest import mock

import numpy
import torch
from PIL import Image

from make import relative
from webui_reference import Run


def mistakes(run):
    """Returns how far each mistake moves the final latents or the final picture of a run."""
    found = {}

    def far(what, spoil=None, on="latents", **changes):
        case = run.case | dict(
            options=run.case["options"] | changes.pop("options", {}),
            mask=changes.pop("mask", run.case["mask"]))
        case["fields"] = case["fields"] | changes
        other = Run(run.webui, run.model, case, spoil)
        found[what] = distance(getattr(run, on), getattr(other, on))

    if run.case["checked"]:
        far("another seed", seed=5)
    {"Txt2Img": of_hires, "Img2Img": of_img2img}[run.case["kind"]](run, far)
    return found


def distance(a, b):
    """Returns the relative L2 of two tensors or lists of pictures; 1 if the shapes differ."""
    if isinstance(a, list):
        a, b = (torch.from_numpy(numpy.stack(images).astype(numpy.float32)) for images in (a, b))
    return relative(a, b) if a.shape == b.shape else 1.0


@contextlib.contextmanager
def patched(owner, name, change):
    """Replaces a function by `change(function)` for a while."""
    original = getattr(owner, name)
    with mock.patch.object(owner, name, change(original)):
        yield


# ---------------------------------------------------------------- hires fix


OTHERS = {
    "Latent": "Latent (bicubic)", "Latent (antialiased)": "Latent (bicubic)",
    "Latent (bicubic)": "Latent (bicubic antialiased)",
    "Latent (bicubic antialiased)": "Latent (bicubic)",
    "Latent (nearest)": "Latent (nearest-exact)", "Latent (nearest-exact)": "Latent (nearest)",
}


def of_hires(run, far):
    fields = run.case["fields"]
    second = run.passes[-1]
    upscaler, checked = fields["hr_upscaler"], run.case["checked"]
    whole_scale = fields.get("hr_scale") == 2.0 and "hr_resize_x" not in fields
    if upscaler in OTHERS and (checked or run.case["name"].endswith(("-1.5", "-2", "-0.75"))):
        # At whole scales, both kinds of nearest are the same.
        if not (whole_scale and "nearest" in upscaler):
            far(f"{upscaler}: {OTHERS[upscaler]}", hr_upscaler=OTHERS[upscaler])
        if fields["hr_scale"] < 1 and "bicubic" not in upscaler:
            other = "Latent" if "antialiased" in upscaler else "Latent (antialiased)"
            far(f"{upscaler}: {other}, smaller", hr_upscaler=other)
    elif upscaler not in OTHERS:
        far("latents in place of pixels resized", hr_upscaler="Latent")
        far("another upscaler of pixels",
            hr_upscaler="Lanczos" if upscaler == "Nearest" else "Nearest")
    if checked:
        steps = fields.get("hr_second_pass_steps") or fields["steps"]
        far("one step less in the second pass", hr_second_pass_steps=steps - 1)
        far("the noise goes on in the second pass", continued)
        far("guidance + 1 in the second pass", guidance)
        if fields["denoising_strength"] < 1:
            far("the steps of img2img in the second pass", as_img2img_steps)
            far("the second pass starts one step later", later)
        if second.name == "DDIM":
            far("DDIM: noise of the first timestep that is denoised", first_timestep)
    if second.tree and checked:
        far("a tree over the sigmas that run alone", part_tree)
        far("another seed of the tree", other_tree)
    for field, what in [("hr_prompt", "prompt"), ("hr_negative_prompt", "negative prompt"),
                        ("hr_sampler_name", "sampler"), ("hr_scheduler", "scheduler")]:
        if fields.get(field):
            first = "" if "prompt" in what else None
            far(f"the first {what} in the second pass", **{field: first})
    if run.p.truncate_x or run.p.truncate_y:
        if upscaler in OTHERS:
            far("cropped at the right and below", corner)
        far("noise drawn before the crop", noise_before_crop)
    if run.model.is_sdxl and run.p.truncate_y:
        far("time ids of the cropped size", time_ids)
    if fields.get("subseed_strength"):
        far("no variation in the second pass", without("subseed_strength", 0.0))
    if fields.get("seed_resize_from_w"):
        far("no seed resize in the second pass", without("seed_resize_from_w", 0))
    of_noise(run, far)


def of_noise(run, far):
    fields, options = run.case["fields"], run.case["options"]
    if options.get("eta_noise_seed_delta"):
        far("without ENSD", options=dict(eta_noise_seed_delta=0))
    if options.get("img2img_extra_noise"):
        far("without the extra noise", options=dict(img2img_extra_noise=0.0))
    if fields.get("eta") is not None:
        far("another eta", eta=fields["eta"] - 0.2)


def as_img2img_steps(webui):
    """Counts the steps of the second pass as those of img2img without `img2img_fix_steps`."""
    def change(setup):
        return lambda p, steps=None: (steps, int(min(p.denoising_strength, 0.999) * steps))
    return patched(webui.common, "setup_img2img_steps", change)


def later(webui):
    def change(setup):
        def steps_of(p, steps=None):
            whole, last = setup(p, steps)
            return whole, max(last - 1, 1)
        return steps_of
    return patched(webui.common, "setup_img2img_steps", change)


def first_timestep(webui):
    def change(timesteps_of):
        def get_timesteps(sampler, p, steps):
            found = timesteps_of(sampler, p, steps)
            whole, last = webui.common.setup_img2img_steps(p, steps_of(p))
            if whole == steps:
                found[last] = found[last - 1]
            return found
        return get_timesteps
    return patched(webui.timesteps.CompVisSampler, "get_timesteps", change)


@contextlib.contextmanager
def continued(webui):
    made, create = [], webui.rng.ImageRNG.__init__

    def init(rng, *rest, **options):
        create(rng, *rest, **options)
        if made:
            rng.generators, rng.is_first = made[0].generators, False
        made.append(rng)

    with mock.patch.object(webui.rng.ImageRNG, "__init__", init):
        yield


def part_tree(webui):
    def change(create):
        def create_noise_sampler(sampler, x, sigmas, p):
            if p.is_hr_pass or not hasattr(p, "enable_hr"):
                _, last = webui.common.setup_img2img_steps(p, steps_of(p))
                sigmas = sigmas[len(sigmas) - 2 - last:]
            return create(sampler, x, sigmas, p)
        return create_noise_sampler
    return patched(webui.common.Sampler, "create_noise_sampler", change)


def steps_of(p):
    return (p.hr_second_pass_steps or p.steps) if hasattr(p, "enable_hr") else None


def other_tree(webui):
    def change(create):
        def create_noise_sampler(sampler, x, sigmas, p):
            seeds = p.all_seeds
            if p.is_hr_pass or not hasattr(p, "enable_hr"):
                p.all_seeds = [seed + 1 for seed in seeds]
            found = create(sampler, x, sigmas, p)
            p.all_seeds = seeds
            return found
        return create_noise_sampler
    return patched(webui.common.Sampler, "create_noise_sampler", change)


def in_second_pass(webui, before):
    """Calls `before(p)` when the second pass begins."""
    def change(sample):
        def sample_hr_pass(p, *rest):
            before(p)
            return sample(p, *rest)
        return sample_hr_pass
    return patched(webui.processing.StableDiffusionProcessingTxt2Img, "sample_hr_pass", change)


def without(name, value):
    return lambda webui: in_second_pass(webui, lambda p: setattr(p, name, value))


def guidance(webui):
    def before(p):
        p.cfg_scale += 1.0
    return in_second_pass(webui, before)


def corner(webui):
    """Keeps the upper left corner in place of the middle."""
    return truncated(webui, lambda x, w, h: x[:, :, :h, :w])


def truncated(webui, crop):
    def change(interpolate):
        def interpolated(x, size, **options):
            p = webui.current
            found = interpolate(x, size=size, **options)
            w, h = found.shape[3] - p.truncate_x, found.shape[2] - p.truncate_y
            p.truncate_x = p.truncate_y = 0
            return crop(found, w, h)
        return interpolated

    @contextlib.contextmanager
    def spoil():
        with in_second_pass(webui, lambda p: setattr(webui, "current", p)):
            with patched(torch.nn.functional, "interpolate", limited(change)):
                yield
    return spoil()


def limited(change):
    """Changes `interpolate` only for WebUI's call."""
    def changed(original):
        other = change(original)

        def interpolate(*rest, **options):
            if "antialias" in options and "size" in options and options.get("scale_factor") is None:
                return other(*rest, **options)
            return original(*rest, **options)
        return interpolate
    return changed


def noise_before_crop(webui):
    def change(init):
        def made(rng, shape, *rest, **options):
            init(rng, shape, *rest, **options)
            p = getattr(webui, "current", None)
            if p is not None and p.is_hr_pass and (p.truncate_x or p.truncate_y):
                x, y = p.truncate_x, p.truncate_y
                rng.shape = (shape[0], shape[1] + y, shape[2] + x)
                first = rng.first

                def cut():
                    found = first()[:, :, y // 2 : y // 2 + shape[1], x // 2 : x // 2 + shape[2]]
                    rng.shape = tuple(shape)
                    return found
                rng.first = cut
        return made

    @contextlib.contextmanager
    def spoil():
        webui.current = None
        with in_second_pass(webui, lambda p: setattr(webui, "current", p)):
            with patched(webui.rng.ImageRNG, "__init__", change):
                yield
        webui.current = None
    return spoil()


def time_ids(webui):
    def before(p):
        f = webui.processing.opt_f
        x, y = p.hr_upscale_to_x - p.truncate_x * f, p.hr_upscale_to_y - p.truncate_y * f
        calculate = p.calculate_hr_conds

        def calculate_hr_conds():
            kept = p.hr_upscale_to_x, p.hr_upscale_to_y
            p.hr_upscale_to_x, p.hr_upscale_to_y = x, y
            calculate()
            p.hr_upscale_to_x, p.hr_upscale_to_y = kept
        p.calculate_hr_conds = calculate_hr_conds
    return in_second_pass(webui, before)


# ---------------------------------------------------------------- img2img and inpainting


def of_img2img(run, far):
    fields, checked = run.case["fields"], run.case["checked"]
    made, strength = run.passes[-1], fields["denoising_strength"]
    if checked:
        far("one step less", steps=fields["steps"] - 1)
        far("guidance + 1", cfg_scale=fields["cfg_scale"] + 1)
        far("the other count of steps",
            options=dict(img2img_fix_steps=not run.case["options"].get("img2img_fix_steps", False)))
        far("starts one step later", later)
        if made.name == "DDIM":
            far("DDIM: noise of the first timestep that is denoised", first_timestep)
        if made.tree:
            far("a tree over the sigmas that run alone", part_tree)
            far("another seed of the tree", other_tree)
    if run.case["name"].endswith("rounding"):
        far("another number of steps", denoising_strength=strength + 1e-6)
    if fields.get("initial_noise_multiplier"):
        far("without the noise multiplier", initial_noise_multiplier=1.0)
    if "resize_mode" in fields:
        far("another mode of resizing", resize_mode=(fields["resize_mode"] + 1) % 3)
        if fields["resize_mode"] == 3:
            far("latents resized with bicubic", latents_bicubic)
    if fields.get("subseed_strength"):
        far("no variation", subseed_strength=0.0)
    of_noise(run, far)
    if run.p.mask is not None and run.case["mask"] not in ("nothing", "everything"):
        of_inpainting(run, far)


def of_inpainting(run, far):
    case, fields, p = run.case, run.case["fields"], run.p
    soft = not torch.equal(p.nmask, p.nmask.round())
    if case["checked"]:
        far("no blend of the steps", unblended)
        far("blended at the other place", other_place)
        far("without the mask", mask=None)
    if soft or run.passes[-1].name == "DDIM":
        far("no last blend", no_last_blend)
    if soft:
        far("a rounded mask", mask_round=True)
        far("a mask resized by area", by_area)
    elif case["mask"] == "soft" or fields["mask_blur"]:
        far("a mask that is not rounded", mask_round=False)
    far("another masked content", inpainting_fill=(fields["inpainting_fill"] + 1) % 4)
    if fields["inpainting_fill"] == 2:
        far("other noise as masked content", next_noise)
    if fields["mask_blur"] or fields.get("mask_blur_x"):
        far("not blurred", on="images", mask_blur=0)
    if fields.get("inpainting_mask_invert"):
        far("not inverted", inpainting_mask_invert=0)
    if not case["keep"]:
        return
    far("nothing laid over", on="images", options=dict(overlay_inpaint=False))
    if fields["inpaint_full_res"]:
        far("4 pixels more of padding",
            inpaint_full_res_padding=fields["inpaint_full_res_padding"] + 4)
        if case["checked"]:  # in other cases, the region has the ratio of the run
            far("a region in its own ratio", own_ratio)
        far("the whole picture", on="images", inpaint_full_res=False)
    elif case["mask"] == "soft" or fields["mask_blur"]:
        far("laid over with the mask itself", not_doubled, on="images")


def latents_bicubic(webui):
    def change(interpolate):
        def interpolated(x, size=None, mode=None, **options):
            if size and mode == "bilinear":
                return interpolate(x, size=size, mode="bicubic")
            return interpolate(x, size=size, mode=mode or "nearest", **options)
        return interpolated
    return patched(torch.nn.functional, "interpolate", change)


def with_denoiser(webui, edit):
    def change(initialize):
        def initialized(sampler, p):
            found = initialize(sampler, p)
            edit(sampler.model_wrap_cfg)
            return found
        return initialized
    return patched(webui.common.Sampler, "initialize", change)


def unblended(webui):
    def edit(denoiser):
        denoiser.mask = denoiser.nmask = None
    return with_denoiser(webui, edit)


def other_place(webui):
    def edit(denoiser):
        denoiser.mask_before_denoising = not denoiser.mask_before_denoising
    return with_denoiser(webui, edit)


def no_last_blend(webui):
    def change(sample):
        def sampled(p, *rest, **options):
            kept = p.mask, p.nmask
            create = p.sampler.sample_img2img

            def sample_img2img(*a, **k):
                found = create(*a, **k)
                p.mask = None
                return found
            p.sampler.sample_img2img = sample_img2img
            found = sample(p, *rest, **options)
            p.mask, p.nmask = kept
            return found
        return sampled
    return patched(webui.processing.StableDiffusionProcessingImg2Img, "sample", change)


def by_area(webui):
    def change(resize):
        def resized(image, size, resample=None, **options):
            if resample is None and not options:
                resample = Image.Resampling.BOX
            return resize(image, size, resample=resample, **options)
        return resized
    return patched(Image.Image, "resize", change)


def next_noise(webui):
    def change(create):
        def create_random_tensors(shape, seeds, **options):
            rng = webui.rng.ImageRNG(shape, seeds)
            rng.next()
            return rng.next()
        return create_random_tensors
    return patched(webui.processing, "create_random_tensors", change)


def own_ratio(webui):
    return mock.patch.object(webui.masking, "expand_crop_region", lambda region, *rest: region)


def not_doubled(webui):
    class Numpy:
        def __getattr__(self, name):
            return getattr(numpy, name)

        @staticmethod
        def clip(values, least, most):
            return values / 2

    return mock.patch.object(webui.processing, "np", Numpy())
