"""Makes `control/names.json.gz`: the names of today's tensors in original files of ControlNets and
T2I-Adapters.

    python control_names.py --adapter FILE

The script makes the names in the direction from diffusers to the original, by tables that no other
code shares. Diffusers converts in the other direction and must give every tensor back:
`convert_controlnet_checkpoint` of diffusers 0.42.1, and FILE, which is
`scripts/convert_original_t2i_adapter.py` of huggingface/diffusers. `README.md` describes the file.
"""

import argparse
import gzip
import hashlib
import json
import types
from pathlib import Path

import diffusers
import torch
from diffusers.loaders import single_file_utils

from make import HERE, settle
from single_files import unet_modules, unet_name
from single_shapes import FULL

OUT = HERE / "control" / "names.json.gz"
ADAPTER_DIGEST = "1c7168c8e677265346a58a104c76881d9a0c0fb30bcfa377e6ef8796db16deb0"
# Diffusers drops these tensors of SDXL when it converts a ControlNet. They are named as in a UNet.
NOT_CONVERTED = "add_embedding."
CONTROL_NETS = ("sd1", "sd2", "xl")
ADAPTERS = {
    "full_adapter": dict(channels=[320, 640, 1280, 1280], num_res_blocks=2),
    "light_adapter": dict(channels=[320, 640, 1280], num_res_blocks=4),
}


def main():
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--adapter", type=Path, metavar="FILE", required=True)
    arguments = arguments.parse_args()
    settle()
    tables = {name: control_net(name) for name in CONTROL_NETS}
    script = converter(arguments.adapter)
    tables |= {kind: adapter(kind, options, script) for kind, options in ADAPTERS.items()}
    print({name: len(table["tensors"]) for name, table in tables.items()})
    text = json.dumps(tables, separators=(",", ":"), sort_keys=True)
    with open(OUT, "wb") as raw:
        # The file stores no time, so that the same tables give the same bytes.
        with gzip.GzipFile("", "wb", 9, raw, 0) as file:
            file.write(text.encode())
    print(OUT.stat().st_size, "bytes")


def table_of(network, names):
    """Returns the configuration, and today's name, the file's name and the shape of each tensor."""
    state = network.state_dict()
    assert names.keys() == state.keys() and len(set(names.values())) == len(names)
    rows = [[today, names[today], list(tensor.shape)] for today, tensor in state.items()]
    return dict(config=json.loads(network.to_json_string()), tensors=rows)


def marked(names):
    """Returns a small tensor of its own for each name in the file."""
    return {stored: torch.tensor([float(index)]) for index, stored in enumerate(names.values())}


# ---------------------------------------------------------------- ControlNets


def control_net(name):
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**FULL[name]["unet"])
        network = diffusers.ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    names = {today: original(today, unet_modules(unet.config), len(hint_blocks(network)))
             for today in network.state_dict()}
    stored = marked(names)
    for prefix in ("control_model.", ""):  # files have both
        state = {prefix + key.removeprefix("control_model."): v for key, v in stored.items()}
        found = single_file_utils.convert_controlnet_checkpoint(state, dict(network.config))
        converted = {k: v for k, v in names.items() if not k.startswith(NOT_CONVERTED)}
        assert found.keys() == converted.keys(), found.keys() ^ converted.keys()
        assert all(found[today] is stored[key] for today, key in converted.items())
    return table_of(network, names)


def hint_blocks(network):
    return network.controlnet_cond_embedding.blocks


def original(today, modules, blocks):
    """Returns the name of a ControlNet's tensor in the original file.

    In `input_hint_block`, an activation follows each convolution except the last."""
    module, leaf = today.rsplit(".", 1)
    start, *rest = module.split(".")
    if start == "controlnet_down_blocks":
        inner = f"zero_convs.{rest[0]}.0.{leaf}"
    elif start == "controlnet_mid_block":
        inner = f"middle_block_out.0.{leaf}"
    elif start == "controlnet_cond_embedding":
        place = {"conv_in": 0, "conv_out": blocks + 1}.get(rest[0])
        place = int(rest[1]) + 1 if place is None else place
        inner = f"input_hint_block.{2 * place}.{leaf}"
    else:
        inner = unet_name(today, modules)
    return f"control_model.{inner}"


# ---------------------------------------------------------------- T2I-Adapters


def converter(file):
    """Loads diffusers' script."""
    text = file.read_text()
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert digest == ADAPTER_DIGEST, f"{file} has the SHA-256 {digest}"
    script = types.ModuleType("converter")
    exec(compile(text, str(file), "exec"), script.__dict__)
    return script


def adapter(kind, options, script):
    with torch.device("meta"):
        network = diffusers.T2IAdapter(adapter_type=kind, **options)
    names = {today: original_adapter(today, kind, options) for today in network.state_dict()}
    state = {names[today]: torch.full(tensor.shape, float(index))
             for index, (today, tensor) in enumerate(network.state_dict().items())}
    convert = script.convert_light_adapter if kind == "light_adapter" else (
        lambda state: script.convert_adapter(state, 3))
    found = convert(dict(state)).state_dict()
    assert found.keys() == names.keys()
    assert all(torch.equal(found[today], state[stored]) for today, stored in names.items())
    return table_of(network, names)


def original_adapter(today, kind, options):
    """Returns the name of a T2I-Adapter's tensor in the original file.

    A full adapter numbers the residual blocks of all levels in one sequence, and the convolution
    in front of a level belongs to its first block."""
    match today.removeprefix("adapter.").split("."):
        case ["body", level, "resnets", layer, *rest]:
            if kind == "light_adapter":
                return ".".join(["body", level, "body", layer, *rest])
            number = int(level) * options["num_res_blocks"] + int(layer)
            return ".".join(["body", str(number), *rest])
        case ["body", level, *rest]:
            first = level if kind == "light_adapter" else int(level) * options["num_res_blocks"]
            return ".".join(["body", str(first), *rest])
        case rest:
            return ".".join(rest)


if __name__ == "__main__":
    main()
