"""Makes `adapters/`: small T2I-Adapters and IP-Adapters, and names of SDXL's smaller ControlNets.

    adapters.py --extension FILE

FILE is `scripts/adapter.py` of sd-webui-controlnet
(56cec5b2958edf3b1807b7e7b2b1b5186dbd2f81), which has the authors' T2I-Adapters with the tensor names
of their files.

The script needs the versions of `requirements.txt`. It asserts that
- diffusers' `convert_controlnet_checkpoint` gives every tensor of a ControlNet back;
- the authors' T2I-Adapters have the tensors of the files and the features of diffusers' classes;
- every mistake of `adapter_mistakes` and `image_mistakes` moves the values by at least ten times
  the tolerance of the Rust tests, which is 1e-5.
`README.md` describes the files.
"""

import argparse
import gzip
import hashlib
import importlib.util
import json
import math
import sys
import types
from pathlib import Path

import diffusers
import safetensors.torch
import torch
from diffusers.loaders import single_file_utils
from diffusers.loaders.unet import UNet2DConditionLoadersMixin

from make import HERE, settle, tensor_of
from single_files import unet_modules, unet_name

OUT = HERE / "adapters"
EXTENSION = "8c06bd0152bf11745a68d11e38009ec034a99abdd64837b8f2e3eb361155b452"
FIRST_SEED = 14_000_000  # above all seeds of the other scripts
LIMIT = 1e-5  # of the Rust tests

CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"

# The smaller ControlNets that were published for SDXL. WebUI's extension has files of them with
# latent diffusion's names. `control_names.py` has the others.
XL = dict(
    block_out_channels=[320, 640, 1280], cross_attention_dim=2048, use_linear_projection=True,
    addition_embed_type="text_time", addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816, transformer_layers_per_block=1)
NETS = {
    "xl-mid": XL | dict(down_block_types=[PLAIN, PLAIN, CROSS], attention_head_dim=[5, 10, 20]),
    "xl-small": XL | dict(down_block_types=[PLAIN] * 3, mid_block_type="UNetMidBlock2D",
                          attention_head_dim=1),
}
# Tensors that diffusers' conversion drops. A UNet has the same names.
NOT_CONVERTED = "add_embedding."

ADAPTERS = {
    "full": dict(in_channels=3, channels=[8, 12, 16, 16], num_res_blocks=2, downscale_factor=8,
                 adapter_type="full_adapter"),
    "xl": dict(in_channels=1, channels=[8, 12, 16, 16], num_res_blocks=2, downscale_factor=16,
               adapter_type="full_adapter_xl"),
    "light": dict(in_channels=3, channels=[8, 12, 16], num_res_blocks=4, downscale_factor=8,
                  adapter_type="light_adapter"),
}
# Height and width. The second size has odd sides at every level.
SIZES = {"full": [(64, 128), (72, 104)], "xl": [(64, 96), (112, 80)], "light": [(64, 64), (72, 56)]}

# The widths of the image encoder, of its projection and of the UNet's prompt.
WIDTH, PROJECTION, CONTEXT = 40, 24, 32


def main():
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--extension", type=Path, metavar="FILE", required=True)
    arguments = arguments.parse_args()
    settle()
    OUT.mkdir(exist_ok=True)
    write_names()
    record = dict(weights={}, tensors={})
    adapters(record, extension(arguments.extension))
    images(record)
    safetensors.torch.save_file(record["tensors"], OUT / "golden.safetensors")
    (OUT / "golden.safetensors").chmod(0o644)
    parts = [f'"{part}": [\n' + ",\n".join(json.dumps(r) for r in recipes) + "\n]"
             for part, recipes in record["weights"].items()]
    (OUT / "weights.json").write_text("{" + ",\n".join(parts) + "}\n")
    print({file.name: file.stat().st_size for file in sorted(OUT.iterdir())})


# ---------------------------------------------------------------- names


def write_names():
    tables = {}
    for name, options in NETS.items():
        with torch.device("meta"):
            net = diffusers.ControlNetModel(**options)
        tables[name] = table_of(net)
        check_names(name, net, tables[name])
        print(name, len(tables[name]["tensors"]), flush=True)
    text = json.dumps(tables, separators=(",", ":"), sort_keys=True)
    with open(OUT / "names.json.gz", "wb") as raw:
        # The file stores no time, so that the same tables give the same bytes.
        with gzip.GzipFile("", "wb", 9, raw, 0) as file:
            file.write(text.encode())


def table_of(net):
    """Returns the configuration, and a row for each tensor: today's name, stored name, shape."""
    config = types.SimpleNamespace(**net.config, up_block_types=[])
    modules = unet_modules(config)
    state = net.state_dict()
    hints = sum(name.endswith(".weight") for name in state if "cond_embedding.blocks." in name)
    own = {"controlnet_cond_embedding.conv_in": "input_hint_block.0",
           "controlnet_cond_embedding.conv_out": f"input_hint_block.{2 * hints + 2}",
           "controlnet_mid_block": "middle_block_out.0"}
    own |= {f"controlnet_cond_embedding.blocks.{i}": f"input_hint_block.{2 * i + 2}"
            for i in range(hints)}
    own |= {f"controlnet_down_blocks.{i}": f"zero_convs.{i}.0" for i in range(64)}
    rows = []
    for today, tensor in state.items():
        module, leaf = today.rsplit(".", 1)
        stored = f"{own[module]}.{leaf}" if module in own else unet_name(today, modules)
        rows.append([today, f"control_model.{stored}", list(tensor.shape)])
    return dict(config=json.loads(net.to_json_string()), tensors=rows)


def check_names(name, net, table):
    """Asserts that diffusers' conversion gives back every tensor."""
    state = net.state_dict()
    expected = {today for today in state if not today.startswith(NOT_CONVERTED)}
    file = {stored: state[today] for today, stored, _ in table["tensors"]}
    assert len(file) == len(state)
    found = single_file_utils.convert_controlnet_checkpoint(dict(file), dict(net.config))
    assert found.keys() == expected, (name, found.keys() ^ expected)
    assert all(found[today] is state[today] for today in expected), name


# ---------------------------------------------------------------- T2I-Adapters


def extension(path):
    """Returns the module of WebUI's extension."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    assert found == EXTENSION, found
    modules = types.ModuleType("modules")
    modules.devices = types.SimpleNamespace()
    sys.modules["modules"] = modules
    spec = importlib.util.spec_from_file_location("extension_adapter", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def adapters(record, module):
    for part, options in ADAPTERS.items():
        net = diffusers.T2IAdapter(**options).eval()
        shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
        recipes = recipes_of(record, part, shapes)
        for recipe in recipes:
            recipe["stored"] = stored_name(recipe["name"], part, options["num_res_blocks"])
        net.load_state_dict({recipe["name"]: tensor_of(recipe) for recipe in recipes})
        authors = authors_net(module, part, options)
        authors.load_state_dict({recipe["stored"]: tensor_of(recipe) for recipe in recipes})
        for index, size in enumerate(SIZES[part]):
            picture = picture_of(index, options["in_channels"], size)
            name = f"{part}.{index}"
            record["tensors"][f"{name}.picture"] = picture
            picture = (picture.to(torch.float32) / 255)[None]
            found = net(picture)
            if index == 0:  # with odd sides, the authors leave the last row and column out
                for ours, theirs in zip(found, authors(picture), strict=True):
                    assert relative(ours, theirs) < LIMIT / 10, part
            for level, feature in enumerate(found):
                record["tensors"][f"{name}.feature.{level}"] = feature.clone()
            check(name, found, adapter_mistakes(net, part, picture, index))


def stored_name(today, part, resnets):
    """Returns the authors' name of a tensor."""
    today = today.removeprefix("adapter.")
    if part == "light":
        return today.replace(".resnets.", ".body.")
    if ".resnets." in today:
        _, level, _, resnet, rest = today.split(".", 4)
        return f"body.{int(level) * resnets + int(resnet)}.{rest}"
    if today.startswith("body."):
        _, level, rest = today.split(".", 2)
        return f"body.{int(level) * resnets}.{rest}"
    return today


def authors_net(module, part, options):
    cin = options["in_channels"] * options["downscale_factor"] ** 2
    if part == "light":
        channels = options["channels"] + options["channels"][-1:]
        return module.Adapter_light(channels, options["num_res_blocks"], cin).eval()
    return module.Adapter(options["channels"], options["num_res_blocks"], cin, ksize=1, sk=True,
                          use_conv=False, is_sdxl=part == "xl").eval()


def picture_of(seed, channels, size):
    generator = torch.Generator().manual_seed(100 + seed)
    return torch.randint(256, (channels, *size), generator=generator, dtype=torch.uint8)


def adapter_mistakes(net, part, picture, index):
    """Yields the features with a mistake."""
    adapter = net.adapter
    if net.config.in_channels > 1:
        channels, factor = net.config.in_channels, net.config.downscale_factor

        def as_onnx(module, args, output):
            batch, _, height, width = output.shape
            pixels = output.reshape(batch, channels, factor**2, height, width)
            return pixels.transpose(1, 2).reshape(output.shape)

        yield "the channels in ONNX's order", hooked(adapter.unshuffle, as_onnx, net, picture)
    resnet = adapter.body[0].resnets[0]
    keep = lambda module, args, output: args[0]
    yield "no activation", hooked(resnet.act, keep, net, picture)
    if index == 1:
        padded = lambda module, args, output: torch.nn.functional.avg_pool2d(
            torch.nn.functional.pad(args[0], (0, args[0].shape[3] % 2, 0, args[0].shape[2] % 2)), 2)
        block = next(block for block in adapter.body if block.downsample is not None)
        yield "zeros at the end of odd sides", hooked(block.downsample, padded, net, picture)


# ---------------------------------------------------------------- IP-Adapters


def images(record):
    plain = {"proj.weight": (4 * CONTEXT, PROJECTION), "proj.bias": (4 * CONTEXT,),
             "norm.weight": (CONTEXT,), "norm.bias": (CONTEXT,)}
    full = {"proj.0.weight": (WIDTH, WIDTH), "proj.0.bias": (WIDTH,),
            "proj.2.weight": (CONTEXT, WIDTH), "proj.2.bias": (CONTEXT,),
            "proj.3.weight": (CONTEXT,), "proj.3.bias": (CONTEXT,)}
    for part, shapes in {"ip": plain, "ip-plus": resampler(), "ip-full": full}.items():
        recipes = recipes_of(record, part, shapes)
        state = {recipe["name"]: tensor_of(recipe) for recipe in recipes}
        net = UNet2DConditionLoadersMixin()._convert_ip_adapter_image_proj_to_diffusers(
            state, low_cpu_mem_usage=False).eval()
        generator = torch.Generator().manual_seed(7)
        shape = (2, PROJECTION) if part == "ip" else (2, 10, WIDTH)
        states = torch.randn(shape, generator=generator)
        tokens = net(states)
        assert tokens.shape[2] == CONTEXT
        record["tensors"] |= {f"{part}.states": states, f"{part}.tokens": tokens.clone()}
        check(part, [tokens], image_mistakes(net, part, state, states))
        if part == "ip":
            write_pickle(state)
        for recipe in recipes:
            recipe["stored"] = recipe["name"] = f"image_proj.{recipe['name']}"


def write_pickle(state):
    """Writes an IP-Adapter as its authors do: two dictionaries in one, in float16."""
    keys = {f"{index}.to_{kind}_ip.weight": torch.zeros(16, CONTEXT, dtype=torch.float16)
            for index in (1, 3) for kind in "kv"}
    parts = dict(image_proj={k: v.half() for k, v in state.items()}, ip_adapter=keys)
    torch.save(parts, OUT / "ip.bin")
    (OUT / "ip.bin").chmod(0o644)


def resampler(inner=48, heads=2, tokens=6, layers=4):
    found = {"latents": (1, tokens, inner),
             "proj_in.weight": (inner, WIDTH), "proj_in.bias": (inner,),
             "proj_out.weight": (CONTEXT, inner), "proj_out.bias": (CONTEXT,),
             "norm_out.weight": (CONTEXT,), "norm_out.bias": (CONTEXT,)}
    for layer in range(layers):
        for norm in ("0.norm1", "0.norm2", "1.0"):
            found |= {f"layers.{layer}.{norm}.{kind}": (inner,) for kind in ("weight", "bias")}
        found |= {f"layers.{layer}.0.to_q.weight": (64 * heads, inner),
                  f"layers.{layer}.0.to_kv.weight": (128 * heads, inner),
                  f"layers.{layer}.0.to_out.weight": (inner, 64 * heads),
                  f"layers.{layer}.1.1.weight": (4 * inner, inner),
                  f"layers.{layer}.1.3.weight": (inner, 4 * inner)}
    return found


def image_mistakes(net, part, state, states):
    """Yields the tokens with a mistake."""
    if part == "ip":
        keep = lambda module, args, output: args[0]
        yield "no norm", [hooked(net.norm, keep, net, states)]
        return
    activation = net.ff.net[0] if part == "ip-full" else net.layers[0].ff[1].net[0]
    tanh = lambda module, args, output: torch.nn.functional.gelu(
        module.proj(args[0]), approximate="tanh")
    yield "an approximate GELU", [hooked(activation, tanh, net, states)]
    if part == "ip-full":
        return
    attention = net.layers[0].attn
    attention.heads = 4
    yield "heads of 32", [net(states)]
    attention.heads = 2
    keys, values = attention.to_k.weight.clone(), attention.to_v.weight.clone()
    attention.to_k.weight.copy_(values), attention.to_v.weight.copy_(keys)
    yield "keys and values exchanged", [net(states)]
    attention.to_k.weight.copy_(keys), attention.to_v.weight.copy_(values)
    length = states.shape[1]
    without = attention.register_forward_pre_hook(
        lambda module, args: (args[0], args[1][:, :length]))
    yield "no queries among the keys", [net(states)]
    without.remove()
    ours = net.layers[0].ln0.weight.clone(), net.layers[0].ln0.bias.clone()
    net.layers[0].ln0.load_state_dict(net.layers[0].ln1.state_dict())
    yield "one norm for both", [net(states)]
    net.layers[0].ln0.weight.copy_(ours[0]), net.layers[0].ln0.bias.copy_(ours[1])


# ---------------------------------------------------------------- helpers


def recipes_of(record, part, shapes):
    """Returns the recipe of each tensor, so that every layer matters."""
    first = FIRST_SEED + 1000 * len(record["weights"])
    recipes = []
    for index, (name, shape) in enumerate(shapes.items()):
        scale, offset = 0.3, 0.0
        if len(shape) == 1 and name.endswith("weight"):
            offset = 1.0
        elif len(shape) > 1 and name != "latents":
            scale = float(f"{1.5 / math.sqrt(math.prod(shape[1:])):.4g}")
        recipes.append(dict(name=name, shape=list(shape), seed=first + index, scale=scale,
                            offset=offset))
    record["weights"][part] = recipes
    return recipes


def hooked(module, replacement, net, *inputs):
    """Runs a network in which a module has another output."""
    handle = module.register_forward_hook(replacement)
    found = net(*inputs)
    handle.remove()
    return found


def check(name, expected, mistakes):
    """Asserts that every mistake shows in some output."""
    for what, found in mistakes:
        moved = max(relative(a, b) for a, b in zip(found, expected, strict=True))
        print(f"{name}: {what} moves the values by {moved:.1e}", flush=True)
        assert moved > 10 * LIMIT, (name, what, moved)


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


if __name__ == "__main__":
    main()
