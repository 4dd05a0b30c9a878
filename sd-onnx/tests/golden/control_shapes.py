"""The small control networks of `control.py`, their weights and the recorded cases."""

import math

import diffusers
import numpy

from make import tensor_of
from pictures import DDIM, EULER, HEUN, TRAILING
from shapes import scale_and_offset

FIRST_SEED = 12_000_000  # above all seeds of the other scripts
VISION = "gelu"  # the image encoder, a folder of `vision/`
RESAMPLER_LAYERS = 4  # fixed in diffusers

# The folders of `control/`, and the model that each controls.
# The third has as many residuals as SDXL in full size. WebUI's extension counts on their number.
BASES = {"sd1": "four", "sdxl": "families/sdxl-base", "ssd": "families/sdxl-ssd"}

# ---------------------------------------------------------------- networks


def networks_of(folder, unet):
    """Returns the networks of a folder whose configurations diffusers writes, by part."""
    if folder == "ssd":
        return {"controlnet": diffusers.ControlNetModel.from_unet(
            unet, conditioning_embedding_out_channels=(4, 8))}
    if folder == "sd1":
        hints, channels, factor = (4, 8, 8, 12), [32, 64, 96, 96], 8
        light = diffusers.T2IAdapter(3, channels[:3], num_res_blocks=2, downscale_factor=factor,
                                     adapter_type="light_adapter")
        kind, others = "full_adapter", {"adapter_light": light}
    else:
        # The autoencoder halves the sides twice, and the adapter is for the second level.
        hints, channels, factor = (4, 8, 12), [32, 48, 64, 64], 8
        kind, others = "full_adapter_xl", {}

    def control_net():
        return diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=hints)

    def features():
        return diffusers.T2IAdapter(
            3, channels, num_res_blocks=2, downscale_factor=factor, adapter_type=kind)

    if folder == "sdxl":
        others["union"] = union(control_net().config)
    return {"controlnet": control_net(), "controlnet_2": control_net(),
            "adapter": features(), "adapter_2": features()} | others


def union(config):
    """Returns a ControlNet for several types of pictures, by the configuration of another one."""
    config = {key: value for key, value in config.items() if key != "mid_block_type"}
    width = config["block_out_channels"][0]
    return diffusers.ControlNetUnionModel.from_config(
        config, num_control_type=4, num_trans_channel=width, num_trans_head=4, num_trans_layer=2,
        num_proj_channel=width)


def image_adapters_of(folder, unet, vision):
    """Returns the shapes of the tensors of the IP-Adapters, by part, with their published names."""
    if folder == "ssd":
        return {}
    width, projection, context = (
        vision["hidden_size"], vision["projection_dim"], unet.config.cross_attention_dim)
    plain = {
        "image_proj.proj.weight": (4 * context, projection), "image_proj.proj.bias": (4 * context,),
        "image_proj.norm.weight": (context,), "image_proj.norm.bias": (context,),
    }
    full = {
        "image_proj.proj.0.weight": (width, width), "image_proj.proj.0.bias": (width,),
        "image_proj.proj.2.weight": (context, width), "image_proj.proj.2.bias": (context,),
        "image_proj.proj.3.weight": (context,), "image_proj.proj.3.bias": (context,),
    }
    found = {"ip": plain, "ip_2": plain, "ip_plus": resampler(width, 24, context, queries=5)}
    found |= {"ip_full": full} if folder == "sd1" else {}
    return {part: shapes | attention(unet) for part, shapes in found.items()}


def resampler(width, inner, context, queries, heads=2):
    """Returns the tensors of a resampler. A head has 64 channels, as diffusers assumes."""
    found = {
        "image_proj.latents": (1, queries, inner),
        "image_proj.proj_in.weight": (inner, width), "image_proj.proj_in.bias": (inner,),
        "image_proj.proj_out.weight": (context, inner), "image_proj.proj_out.bias": (context,),
        "image_proj.norm_out.weight": (context,), "image_proj.norm_out.bias": (context,),
    }
    for index in range(RESAMPLER_LAYERS):
        layer = f"image_proj.layers.{index}"
        for norm in ("0.norm1", "0.norm2", "1.0"):
            found |= {f"{layer}.{norm}.{kind}": (inner,) for kind in ("weight", "bias")}
        found |= {
            f"{layer}.0.to_q.weight": (64 * heads, inner),
            f"{layer}.0.to_kv.weight": (128 * heads, inner),
            f"{layer}.0.to_out.weight": (inner, 64 * heads),
            f"{layer}.1.1.weight": (4 * inner, inner), f"{layer}.1.3.weight": (inner, 4 * inner),
        }
    return found


def cross_attentions(unet):
    """Returns the cross-attentions of a UNet in the order in which IP-Adapters number them."""
    names = [name.removesuffix(".processor") for name in unet.attn_processors]
    found = [name for name in names if name.endswith("attn2")]
    # Down, up and middle, each cross-attention after its self-attention.
    assert names == [n for name in found for n in (name.replace("attn2", "attn1"), name)]
    return found


def attention(unet):
    """Returns the keys and values for the image tokens. Odd numbers are cross-attentions."""
    found = {}
    for index, name in enumerate(cross_attentions(unet)):
        layer = unet.get_submodule(name)
        for kind in ("k", "v"):
            shape = tuple(getattr(layer, f"to_{kind}").weight.shape)
            found[f"ip_adapter.{2 * index + 1}.to_{kind}_ip.weight"] = shape
    return found


def recipes_of(part, shapes, index):
    """Returns the recipe of each tensor of a part."""
    found = []
    for offset, (name, shape) in enumerate(shapes.items()):
        scale, mean = scale_of(part, name, shape)
        found.append(dict(name=name, shape=list(shape), seed=FIRST_SEED + 1000 * index + offset,
                          scale=scale, offset=mean))
    return found


def scale_of(part, name, shape):
    """Returns the standard deviation and the mean of a tensor, so that the part matters."""
    gains = {
        # The output layers of a ControlNet, which training starts with zeros.
        "controlnet": [("controlnet_down_blocks", 0.5), ("controlnet_mid_block", 1.0),
                       ("controlnet_cond_embedding.conv_out", 1.0),
                       ("controlnet_cond_embedding", 1.7), ("time_emb_proj", 2.0),
                       ("spatial_ch_projs", 1.5), ("in_proj_weight", 1.5),
                       ("control_add_embedding.linear_2", 2.0)],
        "adapter": [("conv_in", 1.0), ("block1", 1.4), ("block2", 1.0)],
        "ip": [("to_k_ip", 1.5), ("to_v_ip", 1.5), ("to_q", 1.5), ("to_kv", 1.5)],
    }
    kind = {"union": "controlnet"}.get(part, part.split("_")[0])
    gain = next((gain for key, gain in gains[kind] if key in name), None)
    if name in ("image_proj.latents", "task_embedding"):
        return 1.0, 0.0
    if len(shape) == 1 and ".ln_" in name:
        return (0.1, 1.0) if name.endswith("weight") else (0.1, 0.0)
    if kind == "controlnet" and gain is None:
        return scale_and_offset("unet", name, shape, {})
    if len(shape) == 1:  # a bias, or the weight of a norm
        return (0.1, 1.0) if name.endswith("weight") else (0.05, 0.0)
    return float(f"{(gain or 1.0) / math.sqrt(math.prod(shape[1:])):.4g}"), 0.0


def loaded(network, recipes):
    """Sets the weights of a network from their recipes."""
    network.load_state_dict({recipe["name"]: tensor_of(recipe) for recipe in recipes})
    return network.eval()


# ---------------------------------------------------------------- pictures


def hint(seed, width, height):
    """Returns a control picture: lines, a disc and a gradient, each in colours of its own."""
    rows, columns = numpy.mgrid[:height, :width]
    pixels = numpy.zeros((height, width, 3), numpy.int64)
    pixels[..., seed % 3] = 20 + columns * 150 // (width - 1)
    slope = (rows * (3 + seed) + columns * 5) % (23 + 4 * seed) < 4
    pixels[slope] = 255, 180, 30
    disc = (columns - width * 2 // 5) ** 2 + (rows - height * 3 // 5) ** 2 < (height // 4) ** 2
    pixels[disc] = 30 + 60 * seed, 220, 90
    pixels[height // 6 : height // 4, 3 : width - 7] = 250, 240 - 70 * seed, 255
    return pixels.astype(numpy.uint8)


# ---------------------------------------------------------------- cases

PIPELINES = {
    ("sd1", "text"): "StableDiffusionPipeline",
    ("sd1", "controlnet"): "StableDiffusionControlNetPipeline",
    ("sd1", "img2img"): "StableDiffusionControlNetImg2ImgPipeline",
    ("sd1", "inpaint"): "StableDiffusionControlNetInpaintPipeline",
    ("sd1", "adapter"): "StableDiffusionAdapterPipeline",
    ("ssd", "controlnet"): "StableDiffusionXLControlNetPipeline",
    ("sdxl", "union"): "StableDiffusionXLControlNetUnionPipeline",
    ("sdxl", "text"): "StableDiffusionXLPipeline",
    ("sdxl", "controlnet"): "StableDiffusionXLControlNetPipeline",
    ("sdxl", "adapter"): "StableDiffusionXLAdapterPipeline",
}


SIZES = {"sd1": (64, 128), "sdxl": (64, 48), "ssd": (32, 40)}


def control(part="controlnet", seed=0, scale=1.0, start=0.0, end=1.0, size=None, type=None,
            **changes):
    """Returns a ControlNet of a run. `changes` are changed values of its configuration, and `type`
    is the type of the picture for a union."""
    return dict(part=part, changes=changes, seed=seed, size=size, scale=scale, start=start, end=end,
                type=type)


def adapter(part="adapter", seed=0, scale=1.0, size=None):
    """Returns a T2I-Adapter of a run."""
    return dict(part=part, seed=seed, size=size, scale=scale)


def image(part="ip", picture="square", scale=1.0):
    """Returns an IP-Adapter of a run. `picture` is a name of `vision.py`."""
    return dict(part=part, picture=picture, scale=scale)


def case(folder, name, kind, scheduler=EULER, **rest):
    found = dict(
        name=name, folder=folder, pipeline=PIPELINES[folder, kind], scheduler=scheduler[0],
        changes=scheduler[1], steps=6, guidance=2.0 if folder == "sd1" else 5.0, seed=42,
        size=SIZES[folder], controls=[], guess_mode=False, adapters=[], adapter_factor=1.0,
        images=[], picture=None, mask=None, strength=None, mode="balanced")
    assert rest.keys() <= found.keys(), rest
    return found | rest


def cases_of(folder):
    """Returns the runs of a folder."""

    def of(name, kind, *rest, **options):
        return case(folder, name, kind, *rest, **options)

    if folder == "ssd":
        return [of("controlnet", "controlnet", controls=[control()]), *modes(of)]
    found = control_net_cases(of, folder) + adapter_cases(of, folder) + image_cases(of, folder)
    found.append(of("controlnet-ip", "controlnet", controls=[control(scale=0.8)],
                    images=[image(scale=0.6)]))
    if folder == "sd1":
        return found + sd1_cases(of) + modes(of)
    return found + [of("union", "union", controls=[control("union", scale=0.8, type=2)]),
                    of("union-two", "union", controls=[
                        control("union", scale=0.8, type=1),
                        control("union", seed=1, scale=0.5, type=3)]),
                    of("adapter-ip", "adapter", adapters=[adapter(scale=0.8)],
                       images=[image("ip_plus", scale=0.6)])]


def odd(folder):
    """Returns a size at which a level has odd sides."""
    return (72, 56) if folder == "sd1" else (40, 56)


def control_net_cases(of, folder):
    second = "controlnet_2"
    return [
        of("controlnet", "controlnet", controls=[control()]),
        of("controlnet-0.6", "controlnet", controls=[control(scale=0.6)], size=odd(folder)),
        of("controlnet-two", "controlnet",
           controls=[control(scale=0.8), control(second, seed=1, scale=0.5)]),
        of("controlnet-guess", "controlnet", controls=[control()], guess_mode=True),
        of("controlnet-interval", "controlnet", controls=[control(start=0.2, end=0.6)], steps=10),
        of("controlnet-intervals", "controlnet", steps=5,
           controls=[control(end=0.4), control(second, seed=1, start=0.2)]),
        of("controlnet-resized", "controlnet", controls=[control(size=(101, 83))]),
        of("controlnet-bgr", "controlnet",
           controls=[control(controlnet_conditioning_channel_order="bgr")]),
        of("controlnet-no-guidance", "controlnet", controls=[control()], guidance=1.0),
    ]


def sd1_cases(of):
    return [
        of("controlnet-pool", "controlnet", controls=[control(global_pool_conditions=True)]),
        # Each step of Heun but the last calls the networks twice.
        of("controlnet-heun", "controlnet", HEUN, controls=[control(start=0.1, end=0.7)]),
        of("controlnet-img2img", "img2img", controls=[control()], picture="wide", strength=0.6,
           size=(80, 48), steps=10),
        of("controlnet-img2img-interval", "img2img", DDIM, steps=10, size=(80, 48),
           controls=[control(end=0.5)], picture="wide", strength=0.6),
        of("controlnet-inpaint", "inpaint", controls=[control()], picture="square",
           mask="rectangle", strength=1.0, size=(64, 64)),
        of("controlnet-inpaint-0.6", "inpaint", TRAILING, controls=[control()],
           picture="square", mask="soft", strength=0.6, size=(64, 64), steps=10),
        of("ip-full", "text", images=[image("ip_full")]),
        of("ip-full-0.5", "text", images=[image("ip_full", scale=0.5)]),
        of("adapter-light", "adapter", adapters=[adapter("adapter_light")]),
        of("mode-two", "controlnet", mode="prompt",
           controls=[control(scale=0.8), control("controlnet_2", seed=1, scale=0.5)]),
        of("adapter-prompt", "adapter", adapters=[adapter(scale=0.9)], mode="prompt"),
        of("adapter-control", "adapter", adapters=[adapter(scale=0.9)], mode="control"),
    ]


def modes(of):
    """Returns runs with the control modes of WebUI's extension."""
    return [of(f"mode-{mode}", "controlnet", controls=[control(scale=0.9)], mode=mode)
            for mode in ("prompt", "control")]


def adapter_cases(of, folder):
    found = [
        of("adapter", "adapter", adapters=[adapter()]),
        of("adapter-0.7", "adapter", adapters=[adapter(scale=0.7, size=(101, 83))]),
        of("adapter-two", "adapter",
           adapters=[adapter(scale=0.8), adapter("adapter_2", seed=1, scale=0.5)]),
        of("adapter-no-guidance", "adapter", adapters=[adapter()], guidance=1.0),
    ]
    if folder == "sdxl":
        # Half of five steps are two.
        found.append(of("adapter-half", "adapter", adapters=[adapter()], adapter_factor=0.5,
                        steps=5))
    return found


def image_cases(of, folder):
    blocks = {"down": {"block_2": [0.0, 1.0]}, "up": {"block_1": [0.0, 0.5, 0.0]}}
    if folder == "sdxl":
        blocks = {"down": {"block_2": [1.0]}, "up": {"block_1": [0.5, 0.0]}}
    return [
        of("ip", "text", images=[image()]),
        of("ip-0.5", "text", images=[image(scale=0.5)], size=odd(folder)),
        of("ip-plus", "text", images=[image("ip_plus")]),
        of("ip-plus-0.5", "text", images=[image("ip_plus", "wide", scale=0.5)]),
        of("ip-two", "text", images=[image(scale=0.7), image("ip_plus", "wide", scale=0.4)]),
        of("ip-two-plain", "text", images=[image(scale=0.7), image("ip_2", "wide", scale=0.4)]),
        of("ip-blocks", "text", images=[image(scale=blocks)]),
        of("ip-no-guidance", "text", images=[image()], guidance=1.0),
    ]
