"""Writes half.json: how far torch in float16 is from torch in float32, in the calls of the five shapes.

    python half.py

Every value is the relative L2 distance of a call in float16 from its golden value, which make.py wrote
in float32. torch runs on the CPU, where it keeps float16 between operators and sums in float32, like
the kernels of a graphics card. The tests of the f16 graphs allow a small multiple of these errors.
"""

import json

import safetensors.torch
import torch

from make import HERE, build, read_recipes, settle, token_ids
from shapes import SHAPES
from transformers import CLIPTokenizer


def main():
    settle()
    tokenizer = CLIPTokenizer.from_pretrained(HERE / "tokenizer")
    errors = {name: errors_of(name, tokenizer) for name in SHAPES}
    (HERE / "half.json").write_text(json.dumps(errors, indent=1) + "\n")


def errors_of(name, tokenizer):
    golden = safetensors.torch.load_file(HERE / name / "golden.safetensors")
    cases = json.loads((HERE / name / "cases.json").read_text())
    models = build(SHAPES[name], read_recipes(name))
    text, unet, vae = (models[part].half() for part in ("text_encoder", "unet", "vae"))
    errors = {}

    def record(key, found, expected):
        error = (found.float() - golden[expected]).norm() / golden[expected].norm()
        errors[key] = float(f"{error.item():.2e}")

    for case in cases["text"]:
        output = text(token_ids(tokenizer, case["text"]), output_hidden_states=True)
        record(case["name"], text.final_layer_norm(output.hidden_states[-case["clip_skip"]]), case["name"])
    context = golden["unet.context"].half()
    for case in cases["unet"]:
        key = case["name"]
        timestep = torch.tensor(case["timestep"])
        output = unet(golden[f"{key}.sample"].half(), timestep, encoder_hidden_states=context).sample
        record(key, output, f"{key}.output")
    for case in cases["vae_decode"]:
        key = case["name"]
        record(key, vae.decode(golden[f"{key}.latents"].half()).sample, f"{key}.image")
    for case in cases["vae_encode"]:
        key = case["name"]
        record(f"{key} mean", vae.encode(golden[f"{key}.image"].half()).latent_dist.mean, f"{key}.mean")
    return errors


if __name__ == "__main__":
    main()
