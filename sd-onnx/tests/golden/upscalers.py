"""Makes `upscalers/`: networks that enlarge pictures, with random weights, and their results.

    pip install -r requirements.txt spandrel==0.4.2 && python upscalers.py

`README.md` describes the files. Every network is loaded by spandrel from the names and shapes of its
tensors alone. The script asserts that each mistake moves a result by at least fifty times the
tolerance of the Rust tests, and that rounding stays well within it.
"""

import math
import re
import shutil
from importlib.metadata import version

import torch
from spandrel import ModelLoader
from spandrel.architectures.Compact import Compact
from spandrel.architectures.DAT import DAT
from spandrel.architectures.DAT.__arch import DAT as dat_modules
from spandrel.architectures.ESRGAN import ESRGAN
from spandrel.architectures.SwinIR import SwinIR
from spandrel.architectures.SwinIR.__arch import SwinIR as swin
from spandrel.architectures.__arch_helpers.padding import pad_to_multiple
from spandrel.util import get_seq_len

from make import HERE, relative, settle, tensor_of, write_cases, write_model

OUT = HERE / "upscalers"
FIRST_SEED = 12_000_000  # above all seeds of the other scripts
LEAST = 5e-4  # the least effect of a mistake, relative L2
ROUNDING = 3e-6  # the largest effect of rounding


def rrdb(**changes):
    return ESRGAN(**dict(num_filters=8, num_blocks=1, scale=4) | changes)


def swinir(**changes):
    shape = dict(img_size=16, embed_dim=12, depths=[2, 2], num_heads=[2, 3], window_size=8,
                 mlp_ratio=2.0, upscale=2)
    return SwinIR(**shape | changes)


def dat(**changes):
    shape = dict(img_size=16, embed_dim=192, split_size=[4, 8], depth=[3, 2], num_heads=[4, 2],
                 expansion_factor=1.0, upscale=2)
    return DAT(**shape | changes)


# The networks by name, with the width and height of their picture. RRDBNet has the names of the
# first ESRGAN here; the growth of its blocks is always 32 in spandrel.
NETWORKS = {
    "rrdb": (lambda: rrdb(num_blocks=2), (11, 9)),
    "rrdb-x1": (lambda: rrdb(scale=1), (10, 7)),
    "rrdb-x2": (lambda: rrdb(scale=2), (10, 7)),
    "rrdb-x8": (lambda: rrdb(scale=8), (6, 5)),
    "rrdb-x2plus": (lambda: rrdb(in_nc=12, shuffle_factor=2), (11, 9)),
    "rrdb-x1-unshuffle": (lambda: rrdb(in_nc=48, shuffle_factor=4), (13, 10)),
    "rrdb-plus": (lambda: rrdb(plus=True, scale=2), (10, 7)),
    "compact": (lambda: Compact(num_feat=12, num_conv=3, upscale=4), (11, 9)),
    "compact-x2": (lambda: Compact(num_feat=8, num_conv=2, upscale=2), (10, 7)),
    "compact-x1": (lambda: Compact(num_feat=8, num_conv=0, upscale=1), (10, 7)),
    "swinir-classical": (lambda: swinir(upsampler="pixelshuffle", upscale=4), (21, 12)),
    "swinir-classical-x3": (lambda: swinir(upsampler="pixelshuffle", upscale=3, depths=[2], num_heads=[3]), (9, 8)),
    "swinir-light": (lambda: swinir(upsampler="pixelshuffledirect"), (16, 19)),
    "swinir-real": (lambda: swinir(upsampler="nearest+conv", upscale=4, resi_connection="3conv"), (17, 16)),
    "swinir-real-x8": (lambda: swinir(upsampler="nearest+conv", upscale=8, depths=[2], num_heads=[2]), (9, 10)),
    "swinir-denoise": (lambda: swinir(upsampler="", upscale=1), (24, 17)),
    "swinir-jpeg": (lambda: swinir(upsampler="", upscale=1, img_size=14, window_size=7), (16, 9)),
    # The sides are no multiples of the windows, which zeros fill.
    "dat": (dat, (21, 12)),
    "dat-light": (lambda: dat(img_size=64, upsampler="pixelshuffledirect", upscale=3, depth=[1, 1], resi_connection="3conv",
                              qkv_bias=False, split_size=[8, 8]), (16, 13)),
}


def scale_and_offset(network, name, shape):
    """Returns the standard deviation and the mean of a tensor, so that each layer matters."""
    if name.endswith("running_var"):
        return 0.1, 1.0
    if ".pos." in name and (len(shape) == 2 or name.endswith("bias")):
        # The biases of positions are large, so that attention depends on them.
        factor = 8.0 if "pos3" in name else 2.0
        return (1.1, 0.0) if name.endswith("bias") else (float(f"{factor / math.sqrt(shape[1]):.4g}"), 0.0)
    if name.endswith("temperature"):
        return 0.2, 4.0
    if network.startswith("dat") and len(shape) == 1 and name.endswith("weight"):
        return 0.1, 1.0
    if "norm" in name:
        return (0.1, 1.0) if name.endswith("weight") else (0.1, 0.0)
    if name.endswith("bias"):
        return (0.6 if re.search("fc2|[.]proj[.]|interaction", name) else 0.2), 0.0
    if "bias_table" in name:
        return 1.0, 0.0
    if len(shape) == 1:  # the slopes of a PReLU
        return 0.1, 0.25
    factor = 2.0 if "conv5" in name or ".proj." in name or "fc2" in name else 1.4
    if network == "swinir-jpeg":
        # Within this network the colors go up to 255.
        factor *= {"conv_first.weight": 0.02, "conv_last.weight": 50.0}.get(name, 1.0)
    return float(f"{factor / math.sqrt(math.prod(shape[1:])):.4g}"), 0.0


def recipes_of(name):
    seed, recipes = FIRST_SEED + 10_000 * list(NETWORKS).index(name), []
    for key, tensor in NETWORKS[name][0]().state_dict().items():
        if re.search("relative_position_index$|attn_mask|rpe_biases$|num_batches_tracked$", key):
            continue
        scale, offset = scale_and_offset(name, key, tensor.shape)
        recipes.append(dict(name=key, shape=list(tensor.shape), seed=seed, scale=scale, offset=offset))
        seed += 1
    return recipes


def real_esrgan(state):
    """Returns the tensors of an ESRGAN under the names of Real-ESRGAN."""
    body, last = get_seq_len(state, "model.1.sub") - 1, get_seq_len(state, "model") - 1
    named = {}
    for key, tensor in state.items():
        layer, rest = re.match(r"model\.(\d+)\.(.*)", key).groups()
        layer = int(layer)
        if layer == 0:
            name = f"conv_first.{rest}"
        elif layer == 1 and rest.startswith(f"sub.{body}."):
            name = rest.replace(f"sub.{body}", "conv_body")
        elif layer == 1:
            name = rest.replace("sub.", "body.").replace("RDB", "rdb").replace(".0.weight", ".weight")
            name = name.replace(".0.bias", ".bias")
        elif layer == last:
            name = f"conv_last.{rest}"
        elif layer == last - 2:
            name = f"conv_hr.{rest}"
        else:
            name = f"conv_up{layer // 3}.{rest}"
        named[name] = tensor
    return named


def bsrgan(state):
    """Returns the tensors of an ESRGAN under the names of BSRGAN."""
    parts = [("conv_body", "trunk_conv"), ("body.", "RRDB_trunk."), ("rdb", "RDB"),
             ("conv_up", "upconv"), ("conv_hr", "HRconv")]
    named = {}
    for key, tensor in real_esrgan(state).items():
        for today, theirs in parts:
            key = key.replace(today, theirs)
        named[key] = tensor
    return named


def loaded(state):
    """Returns the model that spandrel recognises, and what it says about it."""
    # A copy, because spandrel renames tensors.
    found = ModelLoader().load_from_state_dict(dict(state))
    return found.model.eval(), found


def model_of(name):
    recipes = recipes_of(name)
    state = {recipe["name"]: tensor_of(recipe) for recipe in recipes}
    full = NETWORKS[name][0]().state_dict()
    return recipes, full | state


def picture(name):
    """Returns a picture, 0 to 1, with some pixels at both ends."""
    width, height = NETWORKS[name][1]
    generator = torch.Generator().manual_seed(list(NETWORKS).index(name))
    return (0.5 + 0.3 * torch.randn((1, 3, height, width), generator=generator)).clamp(0, 1)


def zeroed(tensor):
    """Sets a weight to zero, and returns how to undo it."""
    kept = tensor.clone()
    tensor.zero_()
    return lambda: tensor.copy_(kept)


def scaled(tensor, factor):
    kept = tensor.clone()
    tensor.mul_(factor)
    return lambda: tensor.copy_(kept)


def without_biases(module):
    undo = [zeroed(tensor.data) for key, tensor in module.named_parameters() if key.endswith("bias")]
    return lambda: [one() for one in undo]


def exchanged(thing, key, value):
    kept = getattr(thing, key)
    setattr(thing, key, value)
    return lambda: setattr(thing, key, kept)


def by_picture(norm):
    """Normalizes with the mean and the variance of the picture, as in training."""
    return lambda x: torch.nn.functional.batch_norm(x, None, None, norm.weight, norm.bias, True, 0.0, norm.eps)


def without_masks(attention):
    def masks(height, width, dtype=None):
        masks = type(attention).calculate_mask(attention, height, width, dtype)
        return [torch.zeros_like(mask) for mask in masks]

    return masks


def unmasked(block):
    """Lets all elements of shifted windows attend to each other."""
    mask = lambda size: torch.zeros_like(type(block).calculate_mask(block, size))
    undo = [exchanged(block, "calculate_mask", mask),
            exchanged(block, "attn_mask", torch.zeros_like(block.attn_mask))]
    return lambda: [one() for one in undo]


def mistakes_of(name, model):
    """Returns mistakes: each makes a change and returns how to undo it."""
    for key, parameter in model.named_parameters():
        if ".pos." in key and key.endswith("bias"):
            # Alone, such a bias may add the same number to all scores of an attention, which does
            # not change it. The last one always does.
            continue
        yield f"without {key}", lambda p=parameter: zeroed(p.data)
    for key, module in model.named_modules():
        if isinstance(module, torch.nn.LeakyReLU):
            other = 0.2 if module.negative_slope == 0.01 else 0.01
            yield f"slope of {key}", lambda m=module, o=other: exchanged(m, "negative_slope", o)
        if key.endswith("conv5.0"):
            yield f"residual of {key}", lambda m=module: scaled(m.weight.data, 5.0)
        if isinstance(module, swin.SwinTransformerBlock):
            if module.shift_size:
                yield f"shift of {key}", lambda m=module: exchanged(m, "shift_size", 0)
                other = module.shift_size - 1
                yield f"other shift of {key}", lambda m=module, o=other: exchanged(m, "shift_size", o)
                yield f"mask of {key}", lambda m=module: unmasked(m)
            turned = module.attn.relative_position_index.T.contiguous()
            yield f"turned positions of {key}", lambda m=module.attn, t=turned: exchanged(m, "relative_position_index", t)
            yield f"scale of {key}", lambda m=module.attn: exchanged(m, "scale", m.dim ** -0.5)
        if isinstance(module, torch.nn.BatchNorm2d) and not key.endswith("channel_interaction.2"):
            yield f"statistics of the picture in {key}", lambda m=module: exchanged(m, "forward", by_picture(m))
        if isinstance(module, dat_modules.Adaptive_Spatial_Attention) and module.attn_mask_0 is not None:
            yield f"shift of {key}", lambda m=module: exchanged(m, "shift_size", [0, 0])
            if module.shift_size[0] != module.shift_size[1]:
                yield f"turned shift of {key}", lambda m=module: exchanged(m, "shift_size", m.shift_size[::-1])
            yield f"mask of {key}", lambda m=module: exchanged(m, "calculate_mask", without_masks(m))
        if isinstance(module, dat_modules.DynamicPosBias):
            yield f"without the biases of {key}", lambda m=module: without_biases(m)
        if isinstance(module, dat_modules.Spatial_Attention):
            turned = module.relative_position_index.T.contiguous()
            yield f"turned positions of {key}", lambda m=module, t=turned: exchanged(m, "relative_position_index", t)
            yield f"scale of {key}", lambda m=module: exchanged(m, "scale", m.scale / 2)
        if isinstance(module, torch.nn.GELU):
            yield f"other activation {key}", lambda m=module: exchanged(m, "forward", torch.sigmoid)
    if isinstance(model, DAT):
        yield "colors", lambda: exchanged(model, "mean", model.mean.flip(1))
        if any(hasattr(module, "temperature") for module in model.modules()):
            keep = lambda x, dim: x
            yield "lengths of channels", lambda: exchanged(torch.nn.functional, "normalize", keep)
    if isinstance(model, SwinIR):
        yield "colors", lambda: exchanged(model, "mean", model.mean.flip(1))
        if model.window_size == 7:
            yield "range", lambda: exchanged(model, "img_range", 1.0)
        zeros = lambda x: pad_to_multiple(x, model.window_size, mode="constant")
        if any(side % model.window_size for side in NETWORKS[name][1]):
            yield "zeros beyond the edge", lambda: exchanged(model, "check_image_size", zeros)


def check(name, model, x, y, state):
    """Asserts that mistakes move the result and that rounding does not."""
    wrong = {"red and blue exchanged": relative(y, model(x.flip(1))),
             "colors exchanged after": relative(y, y.flip(1)),
             "turned": relative(y, model(x.transpose(2, 3)).transpose(2, 3))}
    for what, change in mistakes_of(name, model):
        undo = change()
        wrong[what] = relative(y, model(x))
        undo()
    assert torch.equal(y, model(x)), "a mistake was not undone"
    if "unshuffle" in name or "x2plus" in name:
        kept = torch.pixel_unshuffle
        turned = lambda x, downscale_factor: kept(x.transpose(2, 3), downscale_factor).transpose(2, 3)
        undo = exchanged(torch, "pixel_unshuffle", turned)
        wrong["turned squares"] = relative(y, model(x))
        undo()
    rounding = relative(y, model.double()(x.double()))
    model.float()
    worst = min(wrong, key=wrong.get)
    print(f"{name}: {len(wrong)} mistakes from {wrong[worst]:.1e} ({worst}), rounding {rounding:.1e}")
    assert wrong[worst] >= LEAST, worst
    assert rounding <= ROUNDING


def golden():
    parts, tensors, cases = {}, {}, dict(networks=[])
    for name in NETWORKS:
        parts[name], state = model_of(name)
        x = picture(name)
        model, found = loaded(state)
        y = found.model(x)
        assert y.shape[2:] == torch.Size(found.scale * side for side in x.shape[2:])
        if isinstance(model, ESRGAN) and "plus" not in name:
            for names in (real_esrgan(state), bsrgan(state)):
                assert torch.equal(y, loaded(names)[0](x)), "another naming gives another result"
        tensors |= {f"{name}.picture": x, f"{name}.enlarged": y}
        cases["networks"].append(dict(name=name, scale=found.scale))
        if isinstance(model, DAT):
            cases["networks"][-1]["window"] = model.layers[0].blocks[0].attn.split_size
        check(name, model, x, y, state)
    write_model(OUT, {}, parts)
    write_cases(OUT, tensors, cases)
    # A file as training programs write it. Only the averaged weights are those of the recipe.
    averaged = {r["name"]: tensor_of(r).half() for r in parts["compact-x2"]}
    raw = {key: tensor * 0 for key, tensor in averaged.items()}
    torch.save(dict(params=raw, params_ema=averaged), OUT / "compact-x2.pth")


def main():
    settle()
    assert version("spandrel") == "0.4.2"
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    golden()
    print({f.name: f.stat().st_size for f in sorted(OUT.iterdir())})


if __name__ == "__main__":
    main()
