"""Makes `single_files.json.gz`: the names of today's tensors in single-file checkpoints.

    single_files.py                 the tables, checked against diffusers' own conversions
    single_files.py --draw          also draws with diffusers' `from_single_file`; takes minutes
    single_files.py --headers DIR   the files of published models in full size, without weights

The script needs the versions of `requirements.txt`. It makes the names in the direction from diffusers
to latent diffusion, by tables that no other code shares. The functions of diffusers 0.42.1 convert in
the other direction and must give every tensor back: `convert_ldm_unet_checkpoint`,
`convert_ldm_vae_checkpoint`, `convert_ldm_clip_checkpoint` and `convert_open_clip_checkpoint`.
`README.md` describes the file.
"""

import argparse
import gzip
import json
import shutil
import struct
import tempfile
from pathlib import Path

import diffusers
import safetensors.torch
import torch
from diffusers.loaders import single_file_utils
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from make import HERE, settle
from shapes import scale_and_offset
from single_shapes import (
    FULL,
    MARKS,
    PUBLISHED,
    widened,
    widened_autoencoder,
)
from family_shapes import AUTOENCODERS, SHAPES


def main():
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--draw", action="store_true", help="compare pictures, too")
    arguments.add_argument("--headers", type=Path, metavar="DIR", help="write sparse files")
    arguments = arguments.parse_args()
    settle()
    if arguments.headers:
        return write_headers(arguments.headers)
    tables = dict(families={}, full={}, published=PUBLISHED)
    for name in SHAPES:
        shape = widened(name)
        models = build(shape)
        fill(models, shape)
        table = table_of(models, shape, name)
        check(models, table, name)
        if arguments.draw:
            draw(models, shape, table, name)
        tables["families"][name] = table | MARKS.get(name, {})
        print(name, len(table["tensors"]), flush=True)
    for name in AUTOENCODERS:
        shape = widened_autoencoder(name)
        models = {"vae": getattr(diffusers, shape["vae_class"])(**shape["vae"])}
        tables["families"][name] = table_of(models, shape, name)
    for name, shape in FULL.items():
        with torch.device("meta"):
            tables["full"][name] = table_of(build(shape), shape | dict(knobs={}), name)
        print(name, len(tables["full"][name]["tensors"]), flush=True)
    text = json.dumps(tables, separators=(",", ":"), sort_keys=True)
    with open(HERE / "single_files.json.gz", "wb") as raw:
        # The file stores no time, so that the same tables give the same bytes.
        with gzip.GzipFile("", "wb", 9, raw, 0) as file:
            file.write(text.encode())
    print((HERE / "single_files.json.gz").stat().st_size, "bytes")


def build(shape):
    """Returns the networks of a shape."""
    models = {}
    for part, kind in (("text", CLIPTextModel), ("text_2", CLIPTextModelWithProjection)):
        if part in shape:
            config = CLIPTextConfig(**shape[part], architectures=[kind.__name__])
            models[part.replace("text", "text_encoder")] = kind(config)
    models["unet"] = diffusers.UNet2DConditionModel(**shape["unet"])
    models["vae"] = getattr(diffusers, shape.get("vae_class", "AutoencoderKL"))(**shape["vae"])
    return models


def fill(models, shape):
    """Fills every tensor with different values, so that no two can be confused."""
    for part, model in models.items():
        for name, tensor in model.state_dict().items():
            if not name.endswith("position_ids"):
                today = name.removeprefix("text_model.")
                scale, offset = scale_and_offset(part, today, tensor.shape, shape["knobs"])
                tensor.copy_(offset + scale * torch.randn(tensor.shape))
        model.eval()


def is_sd2(models):
    config = getattr(models.get("unet"), "config", None)
    return "text_encoder_2" not in models and config is not None and config.use_linear_projection


# ---------------------------------------------------------------------------------------- tables


def table_of(models, shape, name):
    """Returns the configurations, a row for each tensor, and the other tensors of a published file.

    A row is component, today's name, shape, name in the file, view, scale, offset.
    """
    rows, configs = [], {}
    for part, model in models.items():
        configs[part] = json.loads(model.to_json_string() if part in ("unet", "vae")
                                   else model.config.to_json_string())
        file_name = names_of(part, models, name)
        for today, tensor in model.state_dict().items():
            if today.endswith("position_ids"):
                continue
            today = today.removeprefix("text_model.")
            stored, view = file_name(today)
            scale, offset = scale_and_offset(part, today, tensor.shape, shape.get("knobs", {}))
            rows.append([part, today, list(tensor.shape), stored, view, scale, offset])
    return dict(configs=configs, tensors=rows, extra=extra(models))


def names_of(part, models, name):
    """Returns a function that maps today's name of a tensor to the name and the view in a file."""
    if part == "unet":
        modules = unet_modules(models["unet"].config)
        return lambda today: ("model.diffusion_model." + unet_name(today, modules), "whole")
    if part == "vae":
        if type(models["vae"]).__name__ == "AutoencoderTiny":
            return tiny_name if "unet" not in models else lambda today: ("vae." + today, "whole")
        if type(models["vae"]).__name__ == "AsymmetricAutoencoderKL":
            return lambda today: (today, "whole")
        levels = len(models["vae"].config.block_out_channels)
        return lambda today: vae_name(today, levels)
    if part == "text_encoder_2":
        embedder = 1 if "text_encoder" in models else 0
        return open_clip_names(f"conditioner.embedders.{embedder}.model.")
    if is_sd2(models):
        return open_clip_names("cond_stage_model.model.")
    if "text_encoder_2" in models:
        prefix = "conditioner.embedders.0.transformer.text_model."
    else:
        prefix = "cond_stage_model.transformer.text_model."
    return lambda today: (prefix + today, "whole")


def unet_modules(config):
    """Returns the module of latent diffusion for each of today's blocks.

    Latent diffusion numbers all blocks in one sequence and counts a downsampling as a block.
    """
    modules = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "time_embedding.cond_proj": "time_embed.cond_proj",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "encoder_hid_proj": "encoder_hid_proj",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    levels, layers = len(config.block_out_channels), config.layers_per_block
    block = 1
    for level, kind in enumerate(config.down_block_types):
        for layer in range(layers):
            modules[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{block}.0"
            if "CrossAttn" in kind:
                modules[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{block}.1"
            block += 1
        if level + 1 < levels:
            modules[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{block}.0.op"
            block += 1
    for place, part in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        modules[f"mid_block.{part}"] = f"middle_block.{place}"
    block = 0
    for level, kind in enumerate(config.up_block_types):
        attends = "CrossAttn" in kind
        for layer in range(layers + 1):
            modules[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{block}.0"
            if attends:
                modules[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{block}.1"
            if layer == layers and level + 1 < levels:
                place = 2 if attends else 1
                upsampler = f"output_blocks.{block}.{place}.conv"
                modules[f"up_blocks.{level}.upsamplers.0.conv"] = upsampler
            block += 1
    return modules


IN_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}


def unet_name(today, modules):
    """Returns the name of a tensor. Its module is the longest one that its name begins with."""
    module = max((m for m in modules if today.startswith(m + ".")), key=len)
    rest = today[len(module) + 1 :]
    if ".resnets." in module:
        inner, leaf = rest.rsplit(".", 1)
        rest = f"{IN_RESNET[inner]}.{leaf}"
    return f"{modules[module]}.{rest}"


IN_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def vae_name(today, levels):
    """Returns latent diffusion's name of a tensor, and the view "point" for a 1×1 convolution."""
    start, view = "first_stage_model.", "whole"
    parts = today.split(".")
    half, leaf = parts[0], parts[-1]
    if half not in ("encoder", "decoder"):
        return start + today, view
    match parts[1:-1]:
        case ["conv_norm_out"]:
            inner = "norm_out"
        case ["down_blocks", level, "resnets", layer, part]:
            inner = f"down.{level}.block.{layer}.{part}"
        case ["up_blocks", level, "resnets", layer, part]:
            inner = f"up.{levels - 1 - int(level)}.block.{layer}.{part}"
        case ["down_blocks", level, "downsamplers", "0", "conv"]:
            inner = f"down.{level}.downsample.conv"
        case ["up_blocks", level, "upsamplers", "0", "conv"]:
            inner = f"up.{levels - 1 - int(level)}.upsample.conv"
        case ["mid_block", "resnets", layer, part]:
            inner = f"mid.block_{int(layer) + 1}.{part}"
        case ["mid_block", "attentions", "0", *part]:
            part = ".".join(part)
            inner = f"mid.attn_1.{IN_ATTENTION[part]}"
            view = "point" if leaf == "weight" and part != "group_norm" else "whole"
        case [part]:
            inner = part
    return f"{start}{half}.{inner.replace('conv_shortcut', 'nin_shortcut')}.{leaf}", view


def tiny_name(today):
    """Returns the name in TAESD's two files. The decoder counts the layer that bounds the
    latents."""
    half, _, layer, rest = today.split(".", 3)
    return f"taesd_{half}.{int(layer) + (half == 'decoder')}.{rest}", "whole"


IN_OPEN_CLIP = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def open_clip_names(prefix):
    def name(today):
        single = {
            "embeddings.token_embedding.weight": "token_embedding.weight",
            "embeddings.position_embedding.weight": "positional_embedding",
            "final_layer_norm.weight": "ln_final.weight",
            "final_layer_norm.bias": "ln_final.bias",
        }
        if today in single:
            return prefix + single[today], "whole"
        if today == "text_projection.weight":
            return prefix + "text_projection", "transposed"
        _, _, layer, module = today.split(".", 3)
        module, leaf = module.rsplit(".", 1)
        start = f"{prefix}transformer.resblocks.{layer}."
        if module.startswith("self_attn.") and module != "self_attn.out_proj":
            return f"{start}attn.in_proj_{leaf}", module[len("self_attn.")]  # q, k or v
        return f"{start}{IN_OPEN_CLIP[module]}.{leaf}", "whole"

    return name


def extra(models):
    """Returns the shapes of tensors that published files have and no network uses."""
    found = {name: [1000] for name in ("betas", "alphas_cumprod", "log_one_minus_alphas_cumprod")}
    if "unet" not in models:
        return {}
    if is_sd2(models):
        config = models["text_encoder"].config
        width, layer = config.hidden_size, config.num_hidden_layers
        start = f"cond_stage_model.model.transformer.resblocks.{layer}."
        found |= {
            start + "attn.in_proj_weight": [3 * width, width],
            start + "attn.in_proj_bias": [3 * width],
            start + "attn.out_proj.weight": [width, width], start + "attn.out_proj.bias": [width],
            start + "ln_1.weight": [width], start + "ln_1.bias": [width],
            start + "ln_2.weight": [width], start + "ln_2.bias": [width],
            start + "mlp.c_fc.weight": [4 * width, width], start + "mlp.c_fc.bias": [4 * width],
            start + "mlp.c_proj.weight": [width, 4 * width], start + "mlp.c_proj.bias": [width],
            "cond_stage_model.model.text_projection": [width, width],
            "cond_stage_model.model.logit_scale": [],
        }
    elif "text_encoder_2" not in models:
        name = "cond_stage_model.transformer.text_model.embeddings.position_ids"
        found |= {name: [1, 77], "model_ema.decay": [], "model_ema.num_updates": [],
                  "model_ema.diffusion_modelout2bias": [4]}
    return found


# ----------------------------------------------------------------------------------------- proof


def state_of(models, table):
    """Returns the tensors of the file."""
    states = {part: {k.removeprefix("text_model."): v for k, v in model.state_dict().items()}
              for part, model in models.items()}
    found = {name: torch.randn(shape) for name, shape in table["extra"].items()}
    fused = {}
    for part, today, _, stored, view, *_ in table["tensors"]:
        tensor = states[part][today]
        if view in "qkv":
            fused.setdefault(stored, {})[view] = tensor
        elif view == "transposed":
            found[stored] = tensor.T.contiguous()
        elif view == "point":
            found[stored] = tensor[:, :, None, None]
        else:
            assert stored not in found, stored
            found[stored] = tensor
    return found | {name: torch.cat([parts[p] for p in "qkv"]) for name, parts in fused.items()}


# Tensors that diffusers drops when it converts a UNet.
NOT_CONVERTED = ("time_embedding.cond_proj.", "encoder_hid_proj.")


def check(models, table, name):
    """Asserts that diffusers' conversions give back every tensor of every network."""
    state = state_of(models, table)
    for part, model in models.items():
        expected = {k.removeprefix("text_model."): v for k, v in model.state_dict().items()}
        if part == "unet":
            found = single_file_utils.convert_ldm_unet_checkpoint(dict(state), dict(model.config))
            expected = {k: v for k, v in expected.items() if not k.startswith(NOT_CONVERTED)}
        elif part == "vae":
            if type(model).__name__ == "AutoencoderTiny":
                continue
            found = single_file_utils.convert_ldm_vae_checkpoint(dict(state), dict(model.config))
        else:
            start = next(row[3] for row in table["tensors"] if row[0] == part)
            if ".transformer.text_model." in start:
                start = start.split("text_model.")[0]
                own = {k: v for k, v in state.items() if k.startswith(start)}
                found = single_file_utils.convert_ldm_clip_checkpoint(own)
            else:
                prefix = start[: start.index(".model.") + len(".model.")]
                found = single_file_utils.convert_open_clip_checkpoint(model, state, prefix)
            found = {k.removeprefix("text_model."): v for k, v in found.items()}
            # Files also have the layer after the last one that is used, and position ids.
            used = lambda k: k in expected or not k.startswith(("encoder.layers.", "embeddings."))
            found = {k: v for k, v in found.items() if used(k)}
            if "text_projection.weight" not in expected:
                found.pop("text_projection.weight", None)
        assert found.keys() == expected.keys(), (name, part, found.keys() ^ expected.keys())
        for key, tensor in expected.items():
            assert torch.equal(found[key], tensor), (name, part, key)


def draw(models, shape, table, name):
    """Asserts that diffusers draws the same latents from the file as from the networks."""
    if name in ("kolors", "lcm", "lcm-xl", "sdxs"):
        return  # diffusers drops some of their tensors.
    kind = getattr(diffusers, shape["pipeline"])
    scheduler, config = shape["scheduler"]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for part, model in models.items():
            model.save_pretrained(folder / "model" / part)
        getattr(diffusers, scheduler)(**config).save_pretrained(folder / "model" / "scheduler")
        for index, pad in enumerate(shape["pads"]):
            suffix = "_2" if index or "text" not in shape else ""
            target = folder / "model" / f"tokenizer{suffix}"
            target.mkdir(parents=True)
            for file in ("vocab.json", "merges.txt"):
                shutil.copy(HERE / "tokenizer" / file, target)
            like = HERE / "families" / name / f"tokenizer_config{suffix}.json"
            shutil.copy(like, target / "tokenizer_config.json")
        shutil.copy(HERE / "families" / name / "model_index.json", folder / "model")
        safetensors.torch.save_file(
            {k: v.contiguous().clone() for k, v in state_of(models, table).items()},
            folder / "model.safetensors")
        whole = kind.from_pretrained(folder / "model")
        single = kind.from_single_file(
            str(folder / "model.safetensors"), config=str(folder / "model"), local_files_only=True)
    parts = {p: getattr(single, p) for p in models}
    for part, model in parts.items():
        found, expected = model.state_dict(), models[part].state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[k], expected[k]) for k in found), (name, part)
    if shape["unet"].get("in_channels", 4) != 4 or "base" in shape:
        return  # These models draw from pictures. Their weights are equal, which is enough.
    call = dict(prompt="a fox", num_inference_steps=2, height=64, width=64, output_type="latent",
                guidance_scale=3.0)
    latents = [pipeline(**call, generator=torch.Generator().manual_seed(1)).images
               for pipeline in (whole, single)]
    assert torch.isfinite(latents[0]).all() and latents[0].std() > 0.01
    assert torch.equal(*latents), name
    print(f"{name}: the same latents", flush=True)


# --------------------------------------------------------------------------------------- headers


def write_headers(folder):
    """Writes the published models as sparse float16 files. Only marks and statistics are real."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, published in PUBLISHED.items():
        shape = FULL[published["like"]]
        with torch.device("meta"):
            table = table_of(build(shape), shape, name)
        shapes = stored_shapes(table) | published.get("shapes", {})
        values = dict(published.get("marks", {}))
        for tensor, deviation in published.get("deviation", {}).items():
            count = shapes[tensor][0]
            values[tensor] = [deviation if i % 2 else -deviation for i in range(count)]
        header, offset = {"__metadata__": published.get("metadata", {})}, 0
        order = sorted(shapes.keys() | values.keys())
        for tensor in order:
            dtype, width = ("F32", 4) if tensor in values else ("F16", 2)
            dims = shapes.get(tensor, [len(values[tensor])] if tensor in values else [])
            count = 1
            for dim in dims:
                count *= dim
            offsets = [offset, offset + width * count]
            header[tensor] = dict(dtype=dtype, shape=dims, data_offsets=offsets)
            offset += width * count
        text = json.dumps(header).encode()
        with open(folder / f"{name}.safetensors", "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            start = file.tell()
            file.truncate(start + offset)
            for tensor, numbers in values.items():
                file.seek(start + header[tensor]["data_offsets"][0])
                file.write(struct.pack(f"<{len(numbers)}f", *numbers))
        print(name, start + offset, "bytes", flush=True)


def stored_shapes(table):
    """Returns the shapes of the tensors of a file."""
    found = dict(table["extra"])
    for _, _, shape, stored, view, *_ in table["tensors"]:
        if view in "qkv":
            shape = [3 * shape[0], *shape[1:]]
        elif view == "transposed":
            shape = shape[::-1]
        elif view == "point":
            shape = [*shape, 1, 1]
        found[stored] = shape
    return found


if __name__ == "__main__":
    main()
