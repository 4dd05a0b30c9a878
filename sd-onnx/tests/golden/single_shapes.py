"""The models of `single_files.py`: the small ones of `family_shapes.py`, with widths from which a
single file can be recognised, and the published ones in full size.

A checkpoint has no configuration. Heads follow from the widths: 8 heads in Stable Diffusion 1.x,
heads of 64 channels elsewhere. Norms have 32 groups. So every width here is a multiple of 64, and in the
autoencoder a multiple of 32.
"""

from family_shapes import AUTOENCODERS, SHAPES, text_2, xl_unet
from shapes import text, unet, vae

# The families of Stable Diffusion 1.x; the others are 2.x, SDXL or its refiner.
SD1 = ["lcm", "inpaint", "pix2pix", "bk-small"]
# v-prediction that no tensor marks.
V_HEADER = {"modelspec.prediction_type": "v"}
# The marker tensors and the metadata that a small file needs.
MARKS = {
    "sd2-v": dict(metadata=V_HEADER),
    "pix2pix-2": dict(metadata=V_HEADER),
    "bk-tiny": dict(metadata=V_HEADER),
    "sdxs": dict(metadata={"modelspec.title": "SDXS 512"}),
    "sd-turbo": dict(metadata={"modelspec.title": "SD Turbo"}),
    "sdxl-turbo": dict(metadata={"modelspec.title": "SDXL Turbo"}),
    "playground": dict(marks={"edm_mean": [-1.6574, 1.886, -1.383, 2.5155],
                              "edm_std": [8.4927, 5.9022, 6.5498, 5.2299]}),
    "cosxl": dict(marks={"edm_vpred.sigma_max": [120.0], "edm_vpred.sigma_min": [0.002]}),
}


def widened(name):
    """Returns a family's shape with widths from which a single file can be recognised."""
    shape = dict(SHAPES[name])
    net = dict(shape["unet"])
    count = len(net["block_out_channels"])
    channels = [64, 128, 192, 192][:count]
    # The prompt must be wider than the first level, or self-attention cannot be recognised.
    widths = []
    for part, width in (("text", 128), ("text_2", 64)):
        if part in shape:
            widths.append(width)
            heads = dict(num_attention_heads=width // 64, projection_dim=width)
            shape[part] = shape[part] | heads | dict(hidden_size=width, intermediate_size=4 * width)
    if "text_2" in shape:
        shape["text_2"] = shape["text_2"] | dict(projection_dim=96)
        sizes = 5 if "text" not in shape else 6
        net["projection_class_embeddings_input_dim"] = 96 + 8 * sizes
    net |= dict(
        block_out_channels=channels, norm_num_groups=32, cross_attention_dim=sum(widths),
        attention_head_dim=8 if name in SD1 else [c // 64 for c in channels])
    if "encoder_hid_dim" in net:
        net |= dict(cross_attention_dim=64, encoder_hid_dim=sum(widths))
    shape["unet"] = net
    if shape.get("vae_class") != "AutoencoderTiny":
        levels = len(shape["vae"]["block_out_channels"])
        wide = dict(block_out_channels=[32, 64, 64, 64][:levels], norm_num_groups=32)
        shape["vae"] = shape["vae"] | wide
        if name == "pix2pix-2":
            shape["vae"]["scaling_factor"] = 0.18215
    return shape


def widened_autoencoder(name):
    shape = dict(AUTOENCODERS[name])
    if shape["vae_class"] == "AsymmetricAutoencoderKL":
        wide = {key: [64 if c > 24 else 32 for c in shape["vae"][key]]
                for key in ("down_block_out_channels", "up_block_out_channels")}
        shape["vae"] = shape["vae"] | wide | dict(norm_num_groups=32, scaling_factor=0.18215)
    return shape


# ------------------------------------------------------------------------------------- full size

CLIP_L = text(768, 12, 12, "quick_gelu") | dict(vocab_size=49408)
OPEN_CLIP_H = text(1024, 23, 16, "gelu") | dict(vocab_size=49408)
OPEN_CLIP_G = text_2(1280, 32, 20, 1280) | dict(vocab_size=49408)
KL = vae([128, 256, 512, 512], layers_per_block=2)
FOUR = [320, 640, 1280, 1280]
THREE = [320, 640, 1280]
WIDE = dict(addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816)


def full_xl(depths, **rest):
    rest = dict(layers_per_block=2, transformer_layers_per_block=depths,
                attention_head_dim=[5, 10, 20]) | WIDE | rest
    return dict(text=CLIP_L, text_2=OPEN_CLIP_G, vae=KL,
                unet=xl_unet(THREE, "-xx", (768, 1280), 1280, **rest))


# SD 1.5, 2.1 and SDXL as published; SSD-1B and Segmind Vega by their layers per block.
FULL = {
    "sd1": dict(text=CLIP_L, vae=KL, unet=unet(FOUR, "xxx-", 768, attention_head_dim=8)),
    "sd2": dict(text=OPEN_CLIP_H, vae=KL, unet=unet(
        FOUR, "xxx-", 1024, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True)),
    "xl": full_xl([1, 2, 10]),
    "refiner": dict(text_2=OPEN_CLIP_G, vae=KL, unet=xl_unet(
        [384, 768, 1536, 1536], "-xx-", (1280,), 1280, ids=5, layers_per_block=2,
        transformer_layers_per_block=4, attention_head_dim=[6, 12, 24, 24],
        addition_time_embed_dim=256, projection_class_embeddings_input_dim=2560)),
    "ssd": full_xl([[1], [2, 2], [4, 4]], mid_block_type="UNetMidBlock2D",
                   reverse_transformer_layers_per_block=[[4, 4, 10], [2, 1, 1], 1]),
    "vega": full_xl([[1], [1, 1], [2, 2]], mid_block_type="UNetMidBlock2D",
                    reverse_transformer_layers_per_block=[[2, 2, 2], [1, 1, 1], 1]),
}

FIRST = "model.diffusion_model.input_blocks.0.0.weight"
STATISTIC = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"

# The differences between the published models: shapes, marker tensors, metadata and the statistic
# of SD 2, as the deviation of alternating values.
PUBLISHED = {
    "sd-1.5": dict(like="sd1"),
    "sd-1.5-inpainting": dict(like="sd1", shapes={FIRST: [320, 9, 3, 3]}),
    "pix2pix": dict(like="sd1", shapes={FIRST: [320, 8, 3, 3]}),
    "sd-2.1-base": dict(like="sd2", deviation={STATISTIC: 0.05}),
    "sd-2.1": dict(like="sd2", deviation={STATISTIC: 0.12}),
    "sdxl-base": dict(like="xl"),
    "sdxl-refiner": dict(like="refiner"),
    "ssd-1b": dict(like="ssd"),
    "vega": dict(like="vega"),
    "playground-2.5": dict(like="xl", marks=MARKS["playground"]["marks"]),
    "cosxl": dict(like="xl", marks=MARKS["cosxl"]["marks"]),
    "noobai-v": dict(like="xl", marks={"v_pred": [], "ztsnr": []}),
    "sdxl-turbo": dict(like="xl", metadata={"modelspec.title": "SDXL Turbo",
                                            "modelspec.resolution": "512x512"}),
}
