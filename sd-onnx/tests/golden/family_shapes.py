"""The small models of `families.py`, one dict each, in the order of the families.

A shape has the configuration of its components, the class of its pipeline, the runs that are
recorded and the knobs of `scale_and_offset`. Configuration values that are not named here have the
default of diffusers or transformers.
"""

from shapes import BOS, EOS, text, unet, vae

# What most published text encoders have in their configuration instead of the ids of the tokenizer.
OLD_IDS = dict(bos_token_id=0, eos_token_id=2, pad_token_id=1)
# What the text encoders of Stable Diffusion 2 and the second ones of SDXL should have.
OPEN_CLIP_IDS = dict(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=0)

SCALED_LINEAR = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
DDIM = SCALED_LINEAR | dict(set_alpha_to_one=False, steps_offset=1, clip_sample=False)
EULER = SCALED_LINEAR | dict(steps_offset=1, timestep_spacing="leading")

PROMPT = "a cute fox girl, watercolour"
NEGATIVE = "blurry, low quality"
SECOND = "an old stone bridge in the rain"
# Two windows of 75 tokens, and no comma at which an engine might split earlier.
LONG = " ".join(["a small fox sits on an old stone bridge and looks at the river in the rain"] * 5)


def run(name, **rest):
    """A run, with what most of them have in common."""
    return dict(
        name=name, prompt=PROMPT, prompt_2=None, negative=NEGATIVE, negative_2=None, windows=1,
        scheduler=None, changes={}, sizes={}, seed=42,
    ) | rest


def dpmpp_2m(**changes):
    changes = dict(algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint") | changes
    return dict(scheduler="DPMSolverMultistepScheduler", changes=changes)


def euler(**changes):
    return dict(scheduler="EulerDiscreteScheduler", changes=changes)


SHAPES = {}

# ------------------------------------------------------------------------------- Stable Diffusion 2

# SD 2.1 in little: the published ids, v-prediction, heads per level of equal width.
SHAPES["sd2-v"] = dict(
    pipeline="StableDiffusionPipeline",
    text=text(40, 3, 5, "gelu") | OLD_IDS,
    pads=["!"],
    unet=unet([32, 64, 96], "xx-", 40, layers_per_block=2, attention_head_dim=[2, 4, 6],
              norm_num_groups=16, use_linear_projection=True, upcast_attention=True),
    vae=vae([16, 24, 24], layers_per_block=1, norm_num_groups=8, scaling_factor=0.18215),
    scheduler=("DDIMScheduler", DDIM | dict(prediction_type="v_prediction")),
    size=(64, 48), steps=8, guidance=7.5, knobs={}, clip_skips=[2],
    runs=[
        run("ddim"),
        run("euler", **euler(timestep_spacing="trailing"), size=(48, 72)),
        run("no-guidance", **dpmpp_2m(use_karras_sigmas=True), guidance=1.0),
    ],
)

# SD 2.1 base in little: epsilon, four levels, heads of several widths, the tokenizer's own ids.
SHAPES["sd2-base"] = dict(
    pipeline="StableDiffusionPipeline",
    text=text(56, 4, 7, "gelu") | OPEN_CLIP_IDS,
    pads=["!"],
    unet=unet([40, 80, 80, 120], "xxx-", 56, layers_per_block=1, attention_head_dim=[5, 10, 20, 20],
              norm_num_groups=8, use_linear_projection=True),
    vae=vae([16, 16, 24, 24], layers_per_block=1, norm_num_groups=4, scaling_factor=0.18215),
    scheduler=("PNDMScheduler", SCALED_LINEAR | dict(set_alpha_to_one=False, steps_offset=1,
                                                     skip_prk_steps=True)),
    size=(56, 72), steps=7, guidance=5.0, knobs={},
    runs=[
        run("euler", **euler(timestep_spacing="leading")),
        run("dpmpp-2m", **dpmpp_2m(timestep_spacing="linspace"), size=(96, 40), negative=""),
        run("no-guidance", **euler(timestep_spacing="linspace"), guidance=1.0, seed=7),
    ],
)
