"""The small models of the golden values, shaped like Stable Diffusion 1.x, and the rule that scales
their random weights.

A shape is a dict with the configuration of its four parts, the sizes of its runs and the knobs of
`scale_and_offset`. Values that are not named here have the default of diffusers.
"""

import math

BOS, EOS, VOCABULARY = 1012, 1013, 1014


def text(width, layers, heads, act):
    return dict(vocab_size=VOCABULARY, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
                num_attention_heads=heads, max_position_embeddings=77, hidden_act=act, projection_dim=width,
                bos_token_id=BOS, eos_token_id=EOS, pad_token_id=EOS)


def unet(channels, attention, width, **rest):
    """Returns a UNet's configuration. `attention` has a character for each level: 'x' stands for
    cross-attention, '-' for none."""
    down = ["CrossAttnDownBlock2D" if a == "x" else "DownBlock2D" for a in attention]
    up = ["CrossAttnUpBlock2D" if a == "x" else "UpBlock2D" for a in reversed(attention)]
    return dict(block_out_channels=channels, down_block_types=down, up_block_types=up, cross_attention_dim=width,
                sample_size=16) | rest


def vae(channels, **rest):
    return dict(block_out_channels=channels, down_block_types=["DownEncoderBlock2D"] * len(channels),
                up_block_types=["UpDecoderBlock2D"] * len(channels), sample_size=64) | rest


# A beta schedule that no formula of diffusers makes: a scaled-linear ramp with a ripple. The
# largest sigma is 7.6.
RIPPLED_BETAS = [
    round((0.025 + 0.07 * i / 999) ** 2 * (1 + 0.2 * math.sin(i / 60)), 7) for i in range(1000)
]

SHAPES = {
    # A small Stable Diffusion 1.5: four levels, the last without attention, VAE factor 8, the
    # published scheduler file.
    "four": dict(
        text=text(48, 4, 4, "quick_gelu"),
        unet=unet([32, 64, 96, 96], "xxx-", 48, layers_per_block=2, attention_head_dim=4, norm_num_groups=32),
        vae=vae([32, 32, 64, 64], layers_per_block=2, norm_num_groups=32, scaling_factor=0.18215),
        scheduler=("PNDMScheduler", dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                                         skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)),
        size=(64, 128), odd=("euler-leading", (520, 392)),
        knobs=dict(output=0.4),
    ),
    # A small Stable Diffusion 2: gelu, heads per level, linear projections, v-prediction, no
    # attention in the first level.
    "three-v": dict(
        text=text(40, 3, 5, "gelu"),
        unet=unet([40, 80, 120], "-xx", 40, layers_per_block=1, transformer_layers_per_block=2,
                  attention_head_dim=[5, 10, 15], norm_num_groups=8, use_linear_projection=True),
        vae=vae([24, 40, 40], layers_per_block=1, norm_num_groups=8, scaling_factor=0.13025,
                use_quant_conv=False),
        scheduler=("DDIMScheduler", dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                                         set_alpha_to_one=False, steps_offset=1, clip_sample=False,
                                         prediction_type="v_prediction")),
        size=(64, 48), odd=("dpmpp-2m-karras", (72, 56)),
        zero_snr=True, knobs={},
    ),
    # Two levels, only the first with attention, deep blocks, eight latent channels, the other order
    # of sinusoids. Predicts the sample.
    "two-sample": dict(
        text=text(32, 4, 2, "quick_gelu"),
        unet=unet([24, 48], "x-", 32, layers_per_block=3, attention_head_dim=[3, 6], norm_num_groups=4,
                  in_channels=8, out_channels=8, mid_block_type="UNetMidBlock2D",
                  flip_sin_to_cos=False, freq_shift=1),
        vae=vae([16, 16, 32, 32], layers_per_block=1, norm_num_groups=4, latent_channels=8, scaling_factor=0.5,
                mid_block_add_attention=False, use_post_quant_conv=False),
        scheduler=("DDIMScheduler", dict(beta_start=0.0001, beta_end=0.015, beta_schedule="linear",
                                         set_alpha_to_one=True, steps_offset=0, clip_sample=False,
                                         prediction_type="sample")),
        size=(80, 64), odd=("euler-leading", (136, 104)),
        knobs=dict(cross=0.5, input=0.3, input_bias=1.0, output=1.0),
    ),
    # Attention in the first and the last level only, no middle block, three latent channels, a list
    # of betas.
    "three-hole": dict(
        text=text(64, 5, 8, "gelu"),
        unet=unet([16, 48, 64], "x-x", 64, layers_per_block=2, attention_head_dim=2, norm_num_groups=16,
                  in_channels=3, out_channels=3, mid_block_type=None, freq_shift=1),
        vae=vae([32, 32, 64], layers_per_block=1, norm_num_groups=16, latent_channels=3, scaling_factor=0.3611,
                shift_factor=0.1159),
        scheduler=("DDIMScheduler", dict(trained_betas=RIPPLED_BETAS, set_alpha_to_one=True, steps_offset=1,
                                         clip_sample=False)),
        size=(48, 64), odd=("dpmpp-2m-karras", (56, 72)),
        knobs={},
    ),
    # Four levels, attention only in the last two, odd channel counts, VAE factor 2 without 1x1
    # convolutions, 500 training steps.
    "four-last": dict(
        text=text(48, 4, 6, "gelu"),
        unet=unet([24, 40, 40, 56], "--xx", 48, layers_per_block=1, attention_head_dim=[3, 5, 5, 7], norm_num_groups=8,
                  use_linear_projection=True, flip_sin_to_cos=False),
        vae=vae([16, 24], layers_per_block=2, norm_num_groups=8, scaling_factor=0.18215,
                mid_block_add_attention=False, use_quant_conv=False, use_post_quant_conv=False),
        scheduler=("DPMSolverMultistepScheduler", dict(num_train_timesteps=500, beta_start=0.001, beta_end=0.018,
                                                       beta_schedule="linear")),
        size=(32, 24), odd=("euler-leading", (40, 24)),
        knobs=dict(moments=40.0),
    ),
}

# The published configuration of Stable Diffusion 1.5.
FULL = dict(
    text=dict(vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
              max_position_embeddings=77, hidden_act="quick_gelu", projection_dim=768,
              bos_token_id=49406, eos_token_id=49407, pad_token_id=49407),
    unet=unet([320, 640, 1280, 1280], "xxx-", 768, layers_per_block=2, attention_head_dim=8, norm_num_groups=32)
    | dict(sample_size=64),
    vae=vae([128, 256, 512, 512], layers_per_block=2, norm_num_groups=32, scaling_factor=0.18215)
    | dict(sample_size=512),
    scheduler=SHAPES["four"]["scheduler"],
    knobs={},
)

KNOBS = dict(
    text_attention=1.0,   # the logits of the text model's attention
    text_branch=1.0,      # the output of an attention or MLP of the text model
    time=1.0,             # the time embedding inside a residual block
    resnet=1.0,           # the output of a residual block of the UNet
    attention=1.5,        # the logits of the UNet's attentions, for each of query and key
    self=3.0,             # the output of a self-attention
    cross=1.5,            # the output of a cross-attention
    transformer=1.0,      # the output of a whole transformer
    input=1.0,            # the UNet's first convolution, relative to its bias
    input_bias=0.05,
    output=0.5,           # the output of the UNet
    added=1.0,            # the embedding of pooled text and sizes, relative to the time embedding
    guidance=1.0,         # the guidance input, relative to the sinusoids of the time
    pooled=1.0,           # the projected pooled text
    vae_input=0.1,        # the VAE decoder's first convolution
    vae_self=6.0,         # the output of the VAE's attention
    image=0.7,            # the output of the VAE decoder
    moments=1.0,          # the output of the VAE encoder
)


def scale_and_offset(part, name, shape, knobs):
    """Returns the standard deviation and the mean of one tensor. Inputs of unit variance give
    outputs of unit variance, times the knob of the tensor's kind."""
    k = KNOBS | knobs
    if "norm" in name.split(".")[-2]:
        return (0.1, 1.0) if name.endswith("weight") else (0.1, 0.0)
    if part == "unet" and name == "conv_in.bias":
        return k["input_bias"], 0.0
    if name.endswith("bias"):
        return 0.05, 0.0
    if "embedding.weight" in name:
        return (0.5, 0.0) if "token" in name else (0.2, 0.0)
    gain = {
        "text_encoder": [("q_proj", k["text_attention"]), ("k_proj", k["text_attention"]),
                         ("out_proj", 2 * k["text_branch"]), ("fc2", 1.5 * k["text_branch"]), ("text_projection", k["pooled"])],
        "unet": [("time_emb_proj", k["time"]), ("conv2", k["resnet"]), ("to_q", k["attention"]), ("to_k", k["attention"]),
                 ("attn1.to_out", k["self"]), ("attn2.to_out", k["cross"]), ("ff.net.2", 1.5),
                 ("proj_out", k["transformer"]), ("conv_in", k["input"]), ("conv_out", k["output"]),
                 ("add_embedding.linear_2", k["added"]), ("cond_proj", k["guidance"])],
        "vae": [("decoder.conv_in", k["vae_input"]), ("decoder.conv_out", k["image"]), ("encoder.conv_out", k["moments"]),
                ("to_out", k["vae_self"])],
    }[part.removesuffix("_2")]
    factor = next((g for key, g in gain if key in name), 1.0)
    return float(f"{factor / math.sqrt(math.prod(shape[1:])):.4g}"), 0.0
