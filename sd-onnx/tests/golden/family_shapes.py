"""The small models of `families.py`, one dict for each, in the order of the families.

A shape has the configuration of its components, the class of its pipeline, the recorded runs and the
knobs of `scale_and_offset`. Configuration values that are not named here have the default of diffusers
or transformers.
"""

from shapes import BOS, EOS, text, unet, vae

# Most published text encoders have these ids in their configuration, which are not the tokenizer's.
OLD_IDS = dict(bos_token_id=0, eos_token_id=2, pad_token_id=1)
# The right ids for the text encoder of Stable Diffusion 2 and the second one of SDXL.
OPEN_CLIP_IDS = dict(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=0)

SCALED_LINEAR = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
DDIM = SCALED_LINEAR | dict(set_alpha_to_one=False, steps_offset=1, clip_sample=False)
EULER = SCALED_LINEAR | dict(steps_offset=1, timestep_spacing="leading")

PROMPT = "a cute fox girl, watercolour"
NEGATIVE = "blurry, low quality"
SECOND = "an old stone bridge in the rain"
# Two windows of 75 tokens, without a comma at which the text could be split earlier.
LONG = " ".join(["a small fox sits on an old stone bridge and looks at the river in the rain"] * 5)


def run(name, **rest):
    """Returns a run with the values that most runs have in common."""
    return dict(
        name=name, prompt=PROMPT, prompt_2=None, negative=NEGATIVE, negative_2=None, windows=1,
        scheduler=None, changes={}, sizes={}, seed=42,
    ) | rest


def dpmpp_2m(**changes):
    changes = dict(algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint") | changes
    return dict(scheduler="DPMSolverMultistepScheduler", changes=changes)


def euler(**changes):
    return dict(scheduler="EulerDiscreteScheduler", changes=changes)


def tiny_output(layer, scale):
    """Returns the override of a tiny decoder's last layer that puts the output between 0 and 1."""
    return {f"decoder.layers.{layer}.weight": dict(scale=scale),
            f"decoder.layers.{layer}.bias": dict(offset=0.5)}


SHAPES = {}

# ------------------------------------------------------------------------------- Stable Diffusion 2

# A small SD 2.1: the published ids, v-prediction, heads per level of equal width.
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

# A small SD 2.1 base: epsilon, four levels, heads of several widths, the tokenizer's own ids.
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

# ------------------------------------------------------------------------------------------- SDXL


def xl_unet(channels, attention, widths, pooled, ids=6, **rest):
    """Returns a UNet that takes pooled text and sizes. `widths` are the widths of the towers."""
    rest = dict(addition_embed_type="text_time", addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=pooled + 8 * ids,
                use_linear_projection=True) | rest
    return unet(channels, attention, sum(widths), **rest)


def text_2(width, layers, heads, projection, **ids):
    config = text(width, layers, heads, "gelu") | dict(projection_dim=projection)
    return config | OPEN_CLIP_IDS | ids


SIZES = dict(
    original_size=(768, 1280), crops_coords_top_left=(24, 200), target_size=(512, 640),
    negative_original_size=(256, 384), negative_crops_coords_top_left=(8, 3),
    negative_target_size=(1024, 896),
)

# A small SDXL base: the published ids (pooled at the largest id), depths per level.
SHAPES["sdxl-base"] = dict(
    pipeline="StableDiffusionXLPipeline",
    options=dict(force_zeros_for_empty_prompt=True),
    text=text(24, 3, 3, "quick_gelu") | OLD_IDS,
    text_2=text_2(32, 4, 4, 32, **OLD_IDS),
    pads=["<|endoftext|>", "!"],
    unet=xl_unet([32, 48, 64], "-xx", (24, 32), 32, layers_per_block=1,
                 transformer_layers_per_block=[1, 2, 3], attention_head_dim=[2, 3, 4],
                 norm_num_groups=16),
    vae=vae([16, 16, 24], layers_per_block=1, norm_num_groups=8, scaling_factor=0.13025),
    scheduler=("EulerDiscreteScheduler", EULER | dict(use_karras_sigmas=False)),
    size=(56, 32), steps=6, guidance=5.0, knobs=dict(attention=1.2), clip_skips=[1, 3],
    runs=[
        run("euler"),
        run("sizes", sizes=SIZES, size=(40, 48)),
        run("zeros", negative=None),
        run("two-prompts", prompt_2=SECOND, negative_2="a red car",
            **dpmpp_2m(use_karras_sigmas=True)),
        run("no-guidance", guidance=1.0, seed=7),
    ],
)

# Small versions of SSD-1B and Vega: depths per transformer, other depths on the way up, a middle
# block of one residual block, the tokenizer's own ids, and an empty negative prompt that is
# encoded.
SHAPES["sdxl-ssd"] = dict(
    pipeline="StableDiffusionXLPipeline",
    options=dict(force_zeros_for_empty_prompt=False),
    text=text(20, 4, 5, "quick_gelu"),
    text_2=text_2(36, 3, 6, 20),
    pads=["<|endoftext|>", "!"],
    unet=xl_unet([24, 40, 80], "-xx", (20, 36), 20, layers_per_block=2,
                 transformer_layers_per_block=[[1], [1, 2], [2, 1]],
                 reverse_transformer_layers_per_block=[[2, 1, 3], [1, 2, 1], 1],
                 mid_block_type="UNetMidBlock2D", attention_head_dim=[3, 5, 8],
                 norm_num_groups=8),
    vae=vae([16, 24], layers_per_block=1, norm_num_groups=8, scaling_factor=0.13025),
    scheduler=("EulerDiscreteScheduler", EULER),
    size=(24, 40), steps=5, guidance=7.0, knobs={},
    runs=[
        run("euler", **euler(timestep_spacing="trailing")),
        run("empty", negative=None, **dpmpp_2m(timestep_spacing="leading")),
        run("long", prompt=LONG, windows=2),
        # The original size of the negative prompt counts only together with its target size.
        run("one-negative-size", seed=8, sizes=dict(
            original_size=(512, 300), crops_coords_top_left=(0, 64), target_size=(400, 700),
            negative_original_size=(64, 32), negative_crops_coords_top_left=(5, 6))),
    ],
)

# ---------------------------------------------------------------------------------------- refiner

# A small refiner: one tower with the rules of SDXL's second tower, sizes with an aesthetic score
# and without a target. It finishes the runs of its base, which has the same autoencoder.
SHAPES["refiner"] = dict(
    pipeline="StableDiffusionXLImg2ImgPipeline", base="sdxl-base",
    options=dict(force_zeros_for_empty_prompt=False, requires_aesthetics_score=True),
    text_2=text_2(40, 4, 5, 40, **OLD_IDS),
    pads=["!"],
    unet=xl_unet([24, 48, 48, 96], "-xx-", (40,), 40, ids=5, layers_per_block=1,
                 transformer_layers_per_block=2, attention_head_dim=[3, 6, 8, 12],
                 norm_num_groups=8),
    vae=SHAPES["sdxl-base"]["vae"],
    scheduler=("EulerDiscreteScheduler", EULER | dict(use_karras_sigmas=False)),
    size=(56, 32), steps=8, guidance=5.0, knobs=dict(output=2.5, added=3.0, resnet=2.0),
    runs=[
        run("euler", switch=0.8),
        run("empty", switch=0.6, negative=None, seed=9),
        run("sizes", switch=0.8, sizes=SIZES, size=(40, 48)),
    ],
)

# Another refiner, deeper in one level only, with a projection narrower than its tower.
SHAPES["refiner-ssd"] = dict(
    pipeline="StableDiffusionXLImg2ImgPipeline", base="sdxl-ssd",
    options=dict(force_zeros_for_empty_prompt=False, requires_aesthetics_score=True),
    text_2=text_2(36, 3, 4, 28),
    pads=["!"],
    unet=xl_unet([32, 48, 64], "x-x", (36,), 28, ids=5, layers_per_block=2,
                 transformer_layers_per_block=[2, 1, 1], attention_head_dim=[4, 6, 16],
                 norm_num_groups=16),
    vae=SHAPES["sdxl-ssd"]["vae"],
    scheduler=("EulerDiscreteScheduler", EULER),
    size=(24, 40), steps=8, guidance=7.0,
    knobs=dict(output=2.5, added=2.0, resnet=2.0, attention=1.3),
    runs=[
        run("euler", switch=0.7, **euler(timestep_spacing="trailing")),
        run("no-guidance", switch=0.45, guidance=1.0, seed=8),
    ],
)

# -------------------------------------------------------------------------------------------- LCM

LCM = SCALED_LINEAR | dict(original_inference_steps=50, set_alpha_to_one=True, steps_offset=0,
                           clip_sample=False, timestep_spacing="leading")

# A small version of the LCM of Dreamshaper: Stable Diffusion 1 with a guidance input.
SHAPES["lcm"] = dict(
    pipeline="LatentConsistencyModelPipeline",
    text=text(32, 3, 4, "quick_gelu") | OLD_IDS,
    pads=["<|endoftext|>"],
    unet=unet([32, 48, 64], "xx-", 32, layers_per_block=2, attention_head_dim=4, norm_num_groups=16,
              time_cond_proj_dim=32),
    vae=vae([16, 16, 24], layers_per_block=1, norm_num_groups=8, scaling_factor=0.18215),
    scheduler=("LCMScheduler", LCM),
    size=(40, 56), steps=4, guidance=8.5, knobs={},
    runs=[
        run("lcm", negative=None),
        run("weak", negative=None, guidance=1.0, steps=2, size=(64, 32)),
        run("large", negative=None, guidance=7.0, steps=8, seed=2**32 + 7, size=(24, 32)),
    ],
)

# SDXL with a guidance input.
SHAPES["lcm-xl"] = dict(
    pipeline="StableDiffusionXLPipeline",
    options=dict(force_zeros_for_empty_prompt=True),
    text=text(16, 3, 2, "quick_gelu") | OLD_IDS,
    text_2=text_2(40, 3, 5, 24, **OLD_IDS),
    pads=["<|endoftext|>", "!"],
    unet=xl_unet([24, 40, 64], "-xx", (16, 40), 24, layers_per_block=1,
                 transformer_layers_per_block=[1, 1, 2], attention_head_dim=[3, 5, 8],
                 norm_num_groups=8, time_cond_proj_dim=18),
    vae=vae([16, 24], layers_per_block=1, norm_num_groups=8, scaling_factor=0.13025),
    scheduler=("LCMScheduler", LCM),
    size=(32, 24), steps=4, guidance=8.5, knobs={},
    runs=[
        run("lcm", negative=None),
        run("sizes", negative=None, guidance=3.0, steps=3, prompt_2=SECOND, sizes=dict(
            original_size=(600, 900), crops_coords_top_left=(16, 40), target_size=(512, 384))),
    ],
)

# ------------------------------------------------------------------- inpainting, instruct-pix2pix

# A small inpainting model of Stable Diffusion 1.5, with nine input channels.
SHAPES["inpaint"] = dict(
    pipeline="StableDiffusionInpaintPipeline",
    text=text(36, 3, 6, "quick_gelu"),
    pads=["<|endoftext|>"],
    unet=unet([32, 48, 64], "xx-", 36, layers_per_block=1, attention_head_dim=4, norm_num_groups=16,
              in_channels=9, out_channels=4),
    vae=vae([16, 16, 24], layers_per_block=1, norm_num_groups=8, scaling_factor=0.18215),
    scheduler=("DDIMScheduler", DDIM),
    size=(48, 40), steps=6, guidance=7.5, knobs={},
    runs=[
        run("ddim", picture=1),
        run("no-guidance", picture=2, guidance=1.0, size=(32, 56),
            **euler(timestep_spacing="trailing")),
    ],
)

# A small inpainting model of SDXL.
SHAPES["inpaint-xl"] = dict(
    pipeline="StableDiffusionXLInpaintPipeline",
    options=dict(force_zeros_for_empty_prompt=True, requires_aesthetics_score=False),
    text=text(24, 3, 4, "quick_gelu") | OLD_IDS,
    text_2=text_2(28, 3, 7, 20, **OLD_IDS),
    pads=["<|endoftext|>", "!"],
    unet=xl_unet([24, 32, 48], "-xx", (24, 28), 20, layers_per_block=1,
                 transformer_layers_per_block=[1, 2, 2], attention_head_dim=[3, 4, 6],
                 norm_num_groups=8, in_channels=9, out_channels=4),
    vae=vae([16, 24], layers_per_block=1, norm_num_groups=8, scaling_factor=0.13025),
    scheduler=("EulerDiscreteScheduler", EULER),
    size=(24, 32), steps=5, guidance=6.0, knobs={},
    runs=[
        run("euler", picture=3),
        run("zeros", picture=4, negative=None, size=(32, 16), **dpmpp_2m(use_karras_sigmas=True)),
    ],
)

# A small instruct-pix2pix: eight input channels, guided by the text and by the picture.
SHAPES["pix2pix"] = dict(
    pipeline="StableDiffusionInstructPix2PixPipeline",
    text=text(32, 4, 4, "quick_gelu"),
    pads=["<|endoftext|>"],
    unet=unet([32, 64, 64], "xx-", 32, layers_per_block=1, attention_head_dim=8, norm_num_groups=8,
              in_channels=8, out_channels=4),
    vae=vae([16, 16, 24], layers_per_block=1, norm_num_groups=8, scaling_factor=0.18215),
    scheduler=("EulerDiscreteScheduler", EULER),
    size=(40, 48), steps=6, guidance=7.5, knobs={},
    runs=[
        run("euler", picture=5, image_guidance=1.5),
        run("ancestral", picture=6, image_guidance=1.2, guidance=5.0, negative="",
            scheduler="EulerAncestralDiscreteScheduler", size=(56, 32)),
        # No guidance by either: one row, with the latents of the picture.
        run("no-guidance", picture=8, image_guidance=1.5, guidance=1.0),
    ],
)

# Another one, wide and shallow, without attention in the first level, with factor 2.
SHAPES["pix2pix-2"] = dict(
    pipeline="StableDiffusionInstructPix2PixPipeline",
    text=text(40, 3, 5, "gelu") | OPEN_CLIP_IDS,
    pads=["!"],
    unet=unet([48, 80], "-x", 40, layers_per_block=2, attention_head_dim=[6, 10],
              norm_num_groups=8, use_linear_projection=True, in_channels=8, out_channels=4),
    vae=vae([16, 24], layers_per_block=1, norm_num_groups=8, scaling_factor=0.5),
    scheduler=("DDIMScheduler", DDIM | dict(prediction_type="v_prediction")),
    size=(32, 24), steps=5, guidance=4.0, knobs={},
    runs=[
        run("euler", picture=7, image_guidance=2.0, **euler(timestep_spacing="trailing")),
    ],
)

# A small instruct-pix2pix on SDXL. Like the first one, it receives unscaled latents of the picture.
SHAPES["pix2pix-xl"] = dict(
    pipeline="StableDiffusionXLInstructPix2PixPipeline",
    options=dict(force_zeros_for_empty_prompt=True),
    text=text(20, 3, 5, "quick_gelu") | OLD_IDS,
    text_2=text_2(32, 3, 4, 20, **OLD_IDS),
    pads=["<|endoftext|>", "!"],
    unet=xl_unet([24, 32, 64], "-xx", (20, 32), 20, layers_per_block=1,
                 transformer_layers_per_block=[1, 1, 2], attention_head_dim=[3, 4, 8],
                 norm_num_groups=8, in_channels=8, out_channels=4),
    vae=vae([16, 24], layers_per_block=1, norm_num_groups=8, scaling_factor=0.13025),
    scheduler=("EulerDiscreteScheduler", EULER),
    size=(24, 32), steps=5, guidance=5.0, knobs={},
    runs=[
        run("euler", picture=9, image_guidance=1.5),
        run("zeros", picture=10, image_guidance=1.3, negative=None, prompt_2=SECOND, size=(32, 16)),
    ],
)

# -------------------------------------------------------------------------------- distilled UNets

# A small BK-SDM Small: one block less in each level, and no middle block.
SHAPES["bk-small"] = dict(
    pipeline="StableDiffusionPipeline",
    text=text(48, 3, 6, "quick_gelu"),
    pads=["<|endoftext|>"],
    unet=unet([32, 48, 64, 80], "xxx-", 48, layers_per_block=1, mid_block_type=None,
              attention_head_dim=8, norm_num_groups=16),
    vae=vae([16, 16, 24], layers_per_block=1, norm_num_groups=8, scaling_factor=0.18215),
    scheduler=("PNDMScheduler", SCALED_LINEAR | dict(set_alpha_to_one=False, steps_offset=1,
                                                     skip_prk_steps=True)),
    size=(48, 40), steps=6, guidance=7.5, knobs=dict(attention=1.2),
    runs=[
        run("euler", **euler(timestep_spacing="leading")),
        run("dpmpp-2m", **dpmpp_2m(timestep_spacing="trailing"), size=(40, 56)),
    ],
)

# A small BK-SDM Tiny of Stable Diffusion 2, and tiny-sd: attention at the innermost level, too.
SHAPES["bk-tiny"] = dict(
    pipeline="StableDiffusionPipeline",
    text=text(40, 3, 4, "gelu") | OLD_IDS,
    pads=["!"],
    unet=unet([24, 40, 72], "xxx", 40, layers_per_block=1, mid_block_type=None,
              attention_head_dim=[3, 5, 9], norm_num_groups=8, use_linear_projection=True,
              upcast_attention=True),
    vae=vae([16, 24], layers_per_block=1, norm_num_groups=8, scaling_factor=0.18215),
    scheduler=("DDIMScheduler", DDIM | dict(prediction_type="v_prediction")),
    size=(40, 24), steps=6, guidance=6.0, knobs={},
    runs=[
        run("ddim"),
        run("dpmpp-2m", **dpmpp_2m(timestep_spacing="trailing"), negative="", size=(16, 32)),
    ],
)

# A small SDXS 0.9. The first level attends to the text only, also where a transformer usually
# attends to itself (its width equals the width of the text, so that the weights fit both). The
# middle block is one residual block. One step, and the tiny autoencoder.
SHAPES["sdxs"] = dict(
    pipeline="StableDiffusionPipeline",
    text=text(32, 3, 4, "gelu") | OLD_IDS,
    pads=["!"],
    unet=unet([32, 48, 64], "xxx", 32, layers_per_block=1, mid_block_type="UNetMidBlock2D",
              only_cross_attention=[True, False, False], attention_head_dim=[4, 6, 8],
              norm_num_groups=16, use_linear_projection=True),
    vae_class="AutoencoderTiny",
    vae=dict(encoder_block_out_channels=[16, 16, 16], decoder_block_out_channels=[16, 16, 16],
             num_encoder_blocks=[1, 2, 1], num_decoder_blocks=[2, 1, 1]),
    overrides=tiny_output(10, 0.02),
    scheduler=("EulerDiscreteScheduler", EULER | dict(timestep_spacing="trailing")),
    size=(40, 56), steps=1, guidance=0.0, knobs={},
    runs=[
        run("one-step"),
        run("guided", steps=5, guidance=4.0, size=(48, 32)),
    ],
)

# A small KOALA 700M: SDXL without a middle block.
SHAPES["koala"] = dict(
    pipeline="StableDiffusionXLPipeline",
    options=dict(force_zeros_for_empty_prompt=True),
    text=text(16, 3, 4, "quick_gelu") | OLD_IDS,
    text_2=text_2(24, 3, 3, 32, **OLD_IDS),
    pads=["<|endoftext|>", "!"],
    unet=xl_unet([32, 48, 64], "-xx", (16, 24), 32, layers_per_block=1, mid_block_type=None,
                 transformer_layers_per_block=[0, 2, 3], attention_head_dim=[4, 6, 8],
                 norm_num_groups=8),
    vae=vae([16, 24], layers_per_block=1, norm_num_groups=8, scaling_factor=0.13025),
    scheduler=("EulerDiscreteScheduler", EULER),
    size=(40, 32), steps=5, guidance=3.5, knobs={},
    runs=[
        run("euler", negative=None),
        run("trailing", **euler(timestep_spacing="trailing"), size=(24, 48), sizes=dict(
            original_size=(320, 640), crops_coords_top_left=(32, 0), target_size=(48, 24))),
    ],
)

# ------------------------------------------------------------------------------------------ Turbo

# A small SD-Turbo: Stable Diffusion 2 in one step, without guidance.
SHAPES["sd-turbo"] = dict(
    pipeline="StableDiffusionPipeline",
    text=text(36, 3, 4, "gelu") | OLD_IDS,
    pads=["!"],
    unet=unet([32, 48, 80], "xx-", 36, layers_per_block=1, attention_head_dim=[4, 6, 10],
              norm_num_groups=16, use_linear_projection=True),
    vae=vae([16, 16, 24], layers_per_block=1, norm_num_groups=8, scaling_factor=0.18215),
    scheduler=("EulerAncestralDiscreteScheduler", SCALED_LINEAR | dict(
        steps_offset=1, timestep_spacing="trailing")),
    size=(56, 40), steps=1, guidance=0.0, knobs=dict(attention=1.2),
    runs=[
        run("one-step"),
        run("four-steps", steps=4, seed=11),
    ],
)

# A small SDXL-Turbo.
SHAPES["sdxl-turbo"] = dict(
    pipeline="StableDiffusionXLPipeline",
    options=dict(force_zeros_for_empty_prompt=True),
    text=text(20, 3, 4, "quick_gelu") | OLD_IDS,
    text_2=text_2(28, 4, 7, 28, **OLD_IDS),
    pads=["<|endoftext|>", "!"],
    unet=xl_unet([24, 48, 64], "-xx", (20, 28), 28, layers_per_block=1,
                 transformer_layers_per_block=[1, 1, 2], attention_head_dim=[3, 6, 8],
                 norm_num_groups=8),
    vae=vae([16, 24], layers_per_block=1, norm_num_groups=8, scaling_factor=0.13025),
    scheduler=("EulerAncestralDiscreteScheduler", SCALED_LINEAR | dict(
        steps_offset=1, timestep_spacing="trailing")),
    size=(32, 40), steps=1, guidance=0.0, knobs={},
    runs=[
        run("one-step"),
        run("three-steps", steps=3, prompt_2=SECOND, seed=12, size=(40, 16)),
    ],
)

# -------------------------------------------------------------------------------------------- EDM

# A small Playground 2.5: SDXL with EDM, and latents with a mean and a deviation per channel.
SHAPES["playground"] = dict(
    pipeline="StableDiffusionXLPipeline",
    options=dict(force_zeros_for_empty_prompt=True),
    text=text(24, 3, 3, "quick_gelu") | OLD_IDS,
    text_2=text_2(32, 3, 8, 32, **OLD_IDS),
    pads=["<|endoftext|>", "!"],
    unet=xl_unet([24, 40, 64], "-xx", (24, 32), 32, layers_per_block=1,
                 transformer_layers_per_block=[1, 2, 2], attention_head_dim=[3, 5, 8],
                 norm_num_groups=8),
    vae=vae([16, 24], layers_per_block=1, norm_num_groups=8, scaling_factor=0.5,
            latents_mean=[-1.6574, 1.886, -1.383, 2.5155],
            latents_std=[8.4927, 5.9022, 6.5498, 5.2299]),
    scheduler=("EDMDPMSolverMultistepScheduler", dict(
        sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, rho=7.0, solver_order=2,
        algorithm_type="dpmsolver++", solver_type="midpoint", final_sigmas_type="zero")),
    size=(32, 40), steps=7, guidance=3.0, knobs={},
    runs=[
        run("dpmpp-2m"),
        run("euler", negative=None, scheduler="EDMEulerScheduler", size=(40, 24)),
    ],
)

# A small CosXL: EDM with v-prediction on exponential sigmas.
SHAPES["cosxl"] = dict(
    pipeline="StableDiffusionXLPipeline",
    options=dict(force_zeros_for_empty_prompt=True),
    text=text(16, 4, 4, "quick_gelu"),
    text_2=text_2(32, 3, 4, 16),
    pads=["<|endoftext|>", "!"],
    unet=xl_unet([32, 48, 48], "-xx", (16, 32), 16, layers_per_block=2,
                 transformer_layers_per_block=[1, 1, 2], attention_head_dim=[4, 6, 6],
                 norm_num_groups=16),
    vae=vae([16, 24], layers_per_block=1, norm_num_groups=8, scaling_factor=0.13025),
    scheduler=("EDMEulerScheduler", dict(
        sigma_min=0.002, sigma_max=120.0, sigma_data=1.0, sigma_schedule="exponential",
        prediction_type="v_prediction")),
    size=(24, 32), steps=7, guidance=3.0, knobs=dict(attention=1.0, self=1.5),
    runs=[
        run("euler"),
        run("dpmpp-2m", negative=None, scheduler="EDMDPMSolverMultistepScheduler", seed=5),
    ],
)

# --------------------------------------------------------------------------------- projected prompts

# A small UNet of Kolors: SDXL's, with a projection of the prompt to the width of cross-attention.
# The published UNet receives the prompt from another text encoder, of width 4096.
SHAPES["kolors"] = dict(
    pipeline="StableDiffusionXLPipeline",
    options=dict(force_zeros_for_empty_prompt=False),
    text=text(20, 3, 4, "quick_gelu") | OLD_IDS,
    text_2=text_2(28, 3, 7, 24, **OLD_IDS),
    pads=["<|endoftext|>", "!"],
    unet=xl_unet([24, 40, 64], "-xx", (20, 28), 24, layers_per_block=1,
                 transformer_layers_per_block=[1, 1, 2], attention_head_dim=[3, 5, 8],
                 norm_num_groups=8, cross_attention_dim=32, encoder_hid_dim=48,
                 encoder_hid_dim_type="text_proj"),
    vae=vae([16, 24], layers_per_block=1, norm_num_groups=8, scaling_factor=0.13025),
    scheduler=("EulerDiscreteScheduler", EULER | dict(beta_end=0.014)),
    size=(32, 24), steps=5, guidance=5.0, knobs={},
    runs=[
        run("euler"),
        run("dpmpp-2m", negative=None, **dpmpp_2m(use_karras_sigmas=True), size=(24, 40)),
    ],
)

# ----------------------------------------------------------------------------------- autoencoders

# Autoencoders alone. `deviation` is the standard deviation of the decoded latents.
AUTOENCODERS = {
    # A small TAESD: factor 8, the block counts of the published configuration.
    "taesd": dict(
        vae_class="AutoencoderTiny",
        vae=dict(encoder_block_out_channels=[16] * 4, decoder_block_out_channels=[16] * 4),
        overrides=tiny_output(18, 0.03), deviation=2.0, knobs={},
    ),
    # Another TAESD: factor 4, more latent channels, different widths in encoder and decoder.
    "taesd-16": dict(
        vae_class="AutoencoderTiny",
        vae=dict(encoder_block_out_channels=[12] * 3, decoder_block_out_channels=[20] * 3,
                 num_encoder_blocks=[2, 1, 3], num_decoder_blocks=[1, 2, 2], latent_channels=16),
        overrides=tiny_output(11, 0.03), deviation=2.0, knobs={},
    ),
    # A small asymmetric autoencoder ×1.5: the decoder is wider and deeper than the encoder.
    "asymmetric": dict(
        vae_class="AsymmetricAutoencoderKL",
        vae=dict(down_block_types=["DownEncoderBlock2D"] * 3,
                 up_block_types=["UpDecoderBlock2D"] * 3,
                 down_block_out_channels=[16, 24, 24], up_block_out_channels=[24, 32, 32],
                 layers_per_down_block=1, layers_per_up_block=2, norm_num_groups=8,
                 scaling_factor=0.18215),
        deviation=5.0, knobs={},
    ),
    # Another asymmetric one: factor 2, eight latent channels, a shallow decoder.
    "asymmetric-2": dict(
        vae_class="AsymmetricAutoencoderKL",
        vae=dict(down_block_types=["DownEncoderBlock2D"] * 2,
                 up_block_types=["UpDecoderBlock2D"] * 2,
                 down_block_out_channels=[16, 32], up_block_out_channels=[32, 48],
                 layers_per_down_block=2, layers_per_up_block=1, norm_num_groups=16,
                 latent_channels=8, scaling_factor=0.5),
        deviation=5.0, knobs={},
    ),
}

# The published configuration of SDXL base 1.0.
FULL_XL = dict(
    text=text(768, 12, 12, "quick_gelu") | OLD_IDS | dict(vocab_size=49408),
    text_2=text_2(1280, 32, 20, 1280, **OLD_IDS) | dict(vocab_size=49408),
    unet=xl_unet([320, 640, 1280], "-xx", (768, 1280), 1280, layers_per_block=2,
                 transformer_layers_per_block=[1, 2, 10], attention_head_dim=[5, 10, 20],
                 addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
                 sample_size=128),
    vae=vae([128, 256, 512, 512], layers_per_block=2, norm_num_groups=32, scaling_factor=0.13025,
            sample_size=1024),
    scheduler=SHAPES["sdxl-base"]["scheduler"],
    knobs={},
)
