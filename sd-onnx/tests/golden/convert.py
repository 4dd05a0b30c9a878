"""Compares converted models with the originals, in diffusers and in Python's ONNX Runtime.

    convert.py PROGRAM [--shape NAME …]

PROGRAM is the built example `convert`: `target/release/examples/convert`. The models come from
`single_shapes.py`, which can be recognised in a single file, with random weights. The script needs the
versions of `requirements.txt`, and onnxruntime 1.32.0. For each model it asserts the following:

- The folders that PROGRAM writes from the old folder and from the old file draw the same latents in
  diffusers, to 1e-5. Their networks give the same numbers bit for bit.
- diffusers' `from_single_file`, with the old folder as `config`, reads the same weights from the file.
- Each graph gives the same numbers as the network in torch, to a relative error of 1e-4.
"""

import argparse
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import diffusers
import numpy as np
import onnxruntime
import torch

from make import HERE, settle
from shapes import scale_and_offset
from single_files import build
from single_shapes import widened

SHAPES = ["bk-small", "cosxl", "inpaint", "lcm", "pix2pix", "playground", "refiner", "sd2-base",
          "sd2-v", "sdxl-base", "sdxl-ssd", "sdxs"]
# diffusers' `from_single_file` leaves some of their tensors behind.
NO_SINGLE_FILE = ["lcm", "sdxs"]


def main():
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("program", type=Path)
    arguments.add_argument("--shape", nargs="+", choices=SHAPES, default=SHAPES)
    arguments = arguments.parse_args()
    assert onnxruntime.__version__ == "1.32.0"
    settle()
    for name in arguments.shape:
        with tempfile.TemporaryDirectory() as folder:
            check(name, Path(folder), arguments.program.absolute())


def check(name, folder, program):
    shape = widened(name)
    write(name, shape, folder / "old")

    def convert(source, out, *options):
        subprocess.run([program, folder / source, folder / out, *options], check=True,
                       capture_output=True)

    convert("old", "new", "--to", "folder")
    convert("old", "model.safetensors", "--to", "file")
    convert("model.safetensors", "back", "--to", "folder", "--tokenizer", folder / "old")
    convert("old", "onnx", "--to", "onnx")
    kind = getattr(diffusers, shape["pipeline"])
    old, new, back = (kind.from_pretrained(folder / it) for it in ("old", "new", "back"))
    loaded = [new, back]
    if name not in NO_SINGLE_FILE:
        loaded.append(kind.from_single_file(
            str(folder / "model.safetensors"), config=str(folder / "old"), local_files_only=True))
    parts = [part for part in ("text_encoder", "text_encoder_2", "unet", "vae")
             if getattr(old, part, None) is not None]
    for other in loaded:
        for part in parts:
            expected, found = getattr(old, part).state_dict(), getattr(other, part).state_dict()
            assert expected.keys() == found.keys(), (name, part)
            assert all(torch.equal(expected[k], found[k]) for k in found), (name, part)
    for pipeline in [old, *loaded]:
        pipeline.set_progress_bar_config(disable=True)
    drawn = draw(name, shape, old, loaded)
    worst = max(graph_error(old, part, folder / "onnx", shape) for part in parts)
    assert worst < 1e-4, (name, worst)
    print(f"{name}: latents {drawn}, graphs {worst:.1e}", flush=True)


def write(name, shape, folder):
    """Writes a model with random weights as a diffusers folder."""
    for part, model in build(shape).items():
        for key, tensor in model.state_dict().items():
            today = key.removeprefix("text_model.")
            scale, offset = scale_and_offset(part, today, tensor.shape, shape["knobs"])
            tensor.copy_(offset + scale * torch.randn(tensor.shape))
        model.save_pretrained(folder / part)
    scheduler, config = shape["scheduler"]
    getattr(diffusers, scheduler)(**config).save_pretrained(folder / "scheduler")
    for index in range(len(shape["pads"])):
        suffix = "_2" if index or "text" not in shape else ""
        target = folder / f"tokenizer{suffix}"
        target.mkdir(parents=True)
        for file in ("vocab.json", "merges.txt"):
            shutil.copy(HERE / "tokenizer" / file, target)
        like = HERE / "families" / name / f"tokenizer_config{suffix}.json"
        shutil.copy(like, target / "tokenizer_config.json")
    shutil.copy(HERE / "families" / name / "model_index.json", folder)


def draw(name, shape, old, loaded):
    """Returns the largest difference of the latents, or None for a model that draws from
    pictures."""
    if shape["unet"].get("in_channels", 4) != 4 or "base" in shape or name == "sdxs":
        return "none"
    # A file stores neither the sampler nor whether an empty prompt becomes zeros.
    for other in loaded:
        other.scheduler = type(old.scheduler).from_config(old.scheduler.config)
    call = dict(prompt="a fox", num_inference_steps=2, height=64, width=64, output_type="latent",
                guidance_scale=3.0)
    if name != "lcm":  # The pipeline of LCM takes no negative prompt.
        call["negative_prompt"] = "blurry"
    expected, *found = (
        pipeline(**call, generator=torch.Generator().manual_seed(1)).images
        for pipeline in [old, *loaded])
    assert torch.isfinite(expected).all() and expected.std() > 0.01
    worst = max((expected - other).abs().max().item() for other in found)
    assert worst <= 1e-5, (name, worst)
    return f"{worst:.1e}"


def graph_error(pipeline, part, folder, shape):
    """Returns the largest relative error of a network's graphs."""
    model = getattr(pipeline, part)
    if part == "vae":
        return max(vae_error(model, folder, half) for half in ("decoder", "encoder"))
    if part == "unet":
        return unet_error(model, folder, shape)
    ids = torch.randint(0, 1000, (2, 77))
    ids[:, 0], ids[0, 40:], ids[1, 76:] = 1012, 1013, 1013
    expected = model(ids, output_hidden_states=True)
    found = run(folder / part, input_ids=ids.numpy())
    names = {"last_hidden_state": expected.last_hidden_state}
    pooled = "text_embeds" if part == "text_encoder_2" else "pooler_output"
    names[pooled] = getattr(expected, pooled)
    for layer, state in enumerate(expected.hidden_states[:-1]):
        names[f"hidden_states.{layer}"] = state
    assert found.keys() == names.keys(), found.keys()
    return max(relative(found[key], value) for key, value in names.items())


def unet_error(model, folder, shape):
    config = model.config
    sample = torch.randn(2, config.in_channels, 16, 16)
    inputs = dict(sample=sample, encoder_hidden_states=torch.randn(
        2, 7, config.encoder_hid_dim or config.cross_attention_dim))
    kwargs = {}
    if config.addition_embed_type:
        count = 5 if "text" not in shape else 6
        width = config.projection_class_embeddings_input_dim
        added = dict(text_embeds=torch.randn(2, width - count * config.addition_time_embed_dim),
                     time_ids=torch.tensor([[512.0, 384, 0, 16, 512, 6][:count]] * 2))
        kwargs["added_cond_kwargs"] = added
        inputs |= added
    if config.time_cond_proj_dim:
        kwargs["timestep_cond"] = inputs["timestep_cond"] = torch.randn(2, config.time_cond_proj_dim)
    expected = model(sample, 500.5, inputs["encoder_hidden_states"], **kwargs).sample
    found = run(folder / "unet", timestep=np.array(500.5, np.float32),
                **{key: value.numpy() for key, value in inputs.items()})
    return relative(found["out_sample"], expected)


def vae_error(model, folder, half):
    if half == "decoder":
        latents = torch.randn(2, model.config.latent_channels, 8, 6)
        expected = model.decode(latents).sample
        return relative(run(folder / "vae_decoder", latent_sample=latents.numpy())["sample"], expected)
    picture = torch.rand(2, 3, 64, 48) * 2 - 1
    encoded = model.encode(picture)
    found = run(folder / "vae_encoder", sample=picture.numpy())
    if hasattr(encoded, "latents"):
        return relative(found["latent_sample"], encoded.latents)
    # Only the means are compared: the log-variance is clamped outside of the network.
    mean = found["latent_parameters"][:, : model.config.latent_channels]
    return relative(mean, encoded.latent_dist.mean)


def run(folder, **inputs):
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert json.loads((folder / "config.json").read_text())
    return dict(zip(names, session.run(names, inputs)))


def relative(found, expected):
    found, expected = torch.from_numpy(np.asarray(found)), expected
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return ((found - expected).norm() / expected.norm()).item()


if __name__ == "__main__":
    with torch.no_grad():
        main()
