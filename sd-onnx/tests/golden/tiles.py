"""Makes `tiles/`: runs of large pictures in overlapping windows.

    pip install -r requirements.txt pillow==13.0.0 && python tiles.py

The panoramas are runs of diffusers' `StableDiffusionPanoramaPipeline`, which averages the windows
after each step of the scheduler. Its `get_views` has windows of 64 latents and a stride of 8; for
most cases it gets smaller numbers. The other runs average the UNet's predictions, by the formulas
of `split_bboxes` and `gaussian_weights` in `tile_utils/utils.py` of pkuliyi2015's
`multidiffusion-upscaler-for-automatic1111` (commit 0795a2f), with the height in place of the width
along y as in Mixture of Diffusers. `README.md` describes the files.

The script asserts that each mistake moves the latents by at least ten times the tolerance of the
Rust tests, and that rounding stays well within it.
"""

import functools
import math
import shutil

import torch

from make import HERE, NEGATIVE, PROMPT, relative, settle, write_cases
from pictures import Model

OUT = HERE / "tiles"
LEAST = 1e-3  # the least effect of a mistake, relative L2
ROUNDING = 3e-5  # the largest effect of rounding
SEED, STEPS, GUIDANCE = 42, 5, 2.0
DDIM = ("DDIMScheduler", dict(timestep_spacing="leading", clip_sample=False))
EULER = ("EulerDiscreteScheduler", dict(timestep_spacing="leading"))
SCHEDULERS = {"ddim": DDIM, "euler": EULER}
PANORAMA = "StableDiffusionPanoramaPipeline"


def case(name, size, window, overlap, scheduler="ddim", model="four", panorama=False, weights="equal"):
    """`size` is in pixels, and `window` and `overlap` in latents."""
    return dict(
        name=name, model=model, width=size[0], height=size[1], window=window, overlap=overlap,
        panorama=panorama, weights=weights, scheduler=scheduler, prompt=PROMPT, negative=NEGATIVE,
        seed=SEED, steps=STEPS, guidance=GUIDANCE)


CASES = [
    # The defaults of the pipeline.
    case("panorama", (576, 512), 64, 56, panorama=True),
    case("panorama.both-axes", (96, 80), 8, 6, panorama=True),
    case("panorama.euler", (128, 64), 8, 4, "euler", panorama=True),
    # The windows are spread unevenly.
    case("equal", (120, 88), 8, 3, "euler"),
    case("gaussian", (120, 88), 8, 3, "euler", weights="gaussian"),
    case("gaussian.ddim", (112, 96), 8, 4, weights="gaussian"),
    # The sizes describe the whole picture.
    case("sdxl", (120, 88), 8, 3, "euler", "families/sdxl-base", weights="gaussian"),
]


def starts(side, window, overlap):
    """Returns where the windows of an axis start."""
    if window >= side:
        return [0]
    count = math.ceil((side - overlap) / (window - overlap))
    return [min(int(i * ((side - window) / (count - 1))), side - window) for i in range(count)]


def gaussian(window, symmetric=False):
    """Returns the weights of a window."""
    def curve(middle):
        places = torch.arange(window, dtype=torch.float64)
        return torch.exp(-((places - middle) ** 2) / window**2 / (2 * 0.01)) / math.sqrt(2 * math.pi * 0.01)

    down = curve((window - 1) / 2 if symmetric else window / 2)
    return torch.outer(down, curve((window - 1) / 2)).to(torch.float32)


def in_windows(forward, case, weights, mistake=None):
    """Returns the UNet's `forward` for windows."""
    window, overlap = case["window"], case["overlap"]

    def predict(sample, timestep, **rest):
        height, width = sample.shape[2:]
        total, sums = torch.zeros_like(sample), torch.zeros_like(sample)
        assert not rest["return_dict"]
        for y in starts(height, window, overlap):
            for x in starts(width, window, overlap):
                area = (..., slice(y, y + window), slice(x, x + window))
                options = dict(rest)
                added = rest.get("added_cond_kwargs")
                if mistake == "sizes of the window" and added:
                    sizes = added["time_ids"].clone()
                    sizes[:, [0, 1, 4, 5]] = 8.0 * window
                    options["added_cond_kwargs"] = added | dict(time_ids=sizes)
                own = weights.to(sample.dtype)
                sums[area] += forward(sample[area], timestep, **options)[0] * own
                total[area] += own
        return (sums / total,)

    return predict


def run(model, case, mistake=None):
    """Returns the final latents of a case."""
    kind, changes = SCHEDULERS[case["scheduler"]]
    name = PANORAMA if case["panorama"] else "StableDiffusionPipeline"
    name = "StableDiffusionXLPipeline" if model.is_xl else name
    pipeline = model.pipeline(dict(pipeline=name, scheduler=kind, scheduler_changes=changes))
    unet, window, stride = pipeline.unet, case["window"], case["window"] - case["overlap"]
    if mistake == "one window":
        window = 10**6
    if mistake == "another stride":
        stride = case["window"]
    if case["panorama"]:
        if mistake == "one window":
            window = max(case["width"], case["height"]) // 8
        pipeline.get_views = functools.partial(pipeline.get_views, window_size=window, stride=stride)
    else:
        weights = gaussian(window) if case["weights"] == "gaussian" and window < 10**6 else torch.ones(1)
        if mistake == "other weights":
            weights = torch.ones(1) if case["weights"] == "gaussian" else gaussian(window)
        if mistake == "symmetric weights":
            weights = gaussian(window, symmetric=True)
        changed = case | dict(window=window, overlap=case["window"] - stride)
        unet.forward = in_windows(type(unet).forward.__get__(unet), changed, weights, mistake)
    factor, channels = pipeline.vae_scale_factor, unet.config.in_channels
    generator = torch.Generator().manual_seed(SEED)
    shape = (1, channels, case["height"] // factor, case["width"] // factor)
    noise = torch.randn(shape, generator=generator).to(unet.dtype)
    try:
        return pipeline(
            prompt=PROMPT, negative_prompt=NEGATIVE, width=case["width"], height=case["height"],
            latents=noise, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
            output_type="latent").images
    finally:
        unet.__dict__.pop("forward", None)


def check(model, case, right):
    """Asserts that mistakes move the result and that rounding does not."""
    mistakes = ["one window", "another stride"]
    if not case["panorama"]:
        mistakes.append("other weights")
    if case["weights"] == "gaussian":
        mistakes.append("symmetric weights")
    if model.is_xl:
        mistakes.append("sizes of the window")
    # The panorama of two windows has no stride that leaves no gap.
    if case["name"] == "panorama":
        mistakes.remove("another stride")
    moved = {mistake: relative(right, run(model, case, mistake)) for mistake in mistakes}
    with model.doubled():
        rounding = relative(right, run(model, case))
    least = min(moved, key=moved.get)
    print(f"{case['name']}: least {moved[least]:.2g} ({least}), rounding {rounding:.2g}")
    assert moved[least] >= LEAST and rounding <= ROUNDING


def check_equivalence(model):
    """Asserts that a panorama equals the average of predictions."""
    for case in CASES:
        if case["panorama"]:
            found = relative(run(model, case), run(model, case | dict(panorama=False)))
            print(f"{case['name']}: differs from averaged predictions by {found:.2g}")
            assert found <= ROUNDING


def main():
    settle()
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    tensors, models = {}, {}
    for case in CASES:
        model = models.setdefault(case["model"], Model(case["model"]))
        right = run(model, case)
        check(model, case, right)
        tensors[f"{case['name']}.latents"] = right
    check_equivalence(models["four"])
    write_cases(OUT, tensors, CASES)
    (OUT / "golden.safetensors").rename(OUT / "tiles.safetensors")


if __name__ == "__main__":
    main()
