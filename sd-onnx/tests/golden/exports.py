"""Exports small models of `families/` to ONNX with other tools, into the folders of `exports/`.

    exports.py [--shape NAME …]

The script needs a separate environment with the versions of `exports-requirements.txt`, because
optimum does not work with the versions that make the other golden values. `README.md` describes the
files.
"""

import argparse
import gzip
import importlib.metadata
import json
import logging
import math
import shutil
import tempfile
import warnings
from pathlib import Path

import diffusers
import numpy
import onnx
import safetensors.torch
import torch
from optimum.exporters.onnx import main_export

HERE = Path(__file__).parent
FOLDERS = ["text_encoder", "text_encoder_2", "unet", "vae_decoder", "vae_encoder"]
# Tensors of at least this many bytes are replaced by zeros.
LEAST = 512


def optimum(source, target, _pipeline):
    """Exports with optimum: scalar float timesteps, and moments from the encoder."""
    main_export(str(source), str(target), task="text-to-image", library_name="diffusers",
                framework="pt", do_validation=False, device="cpu")


def diffusers_2022(source, target, pipeline):
    """Exports as diffusers' script of 2022 did for `OnnxStableDiffusionPipeline`: a list of integer
    timesteps, ids of 32 bits, an encoder that draws its latents, weights in a second file and no
    configurations."""
    config, channels = pipeline.unet.config, {0: "batch", 1: "channels", 2: "height", 3: "width"}
    side = 8 * 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
    export(pipeline.text_encoder, torch.zeros((1, 77), dtype=torch.int32), target / "text_encoder",
           ["input_ids"], ["last_hidden_state", "pooler_output"],
           {"input_ids": {0: "batch", 1: "sequence"}})
    export(pipeline.unet,
           (torch.randn(2, config.in_channels, 8, 8), torch.LongTensor([0, 1]),
            torch.randn(2, 77, config.cross_attention_dim), False),
           target / "unet", ["sample", "timestep", "encoder_hidden_states", "return_dict"],
           ["out_sample"],
           {"sample": channels, "timestep": {0: "batch"},
            "encoder_hidden_states": {0: "batch", 1: "sequence"}})
    unet = onnx.load(target / "unet" / "model.onnx")
    onnx.save_model(unet, target / "unet" / "model.onnx", save_as_external_data=True,
                    all_tensors_to_one_file=True, location="weights.pb", convert_attribute=False)
    vae = pipeline.vae
    vae.forward = lambda sample, return_dict: vae.encode(sample, return_dict)[0].sample()
    export(vae, (torch.randn(1, 3, side, side), False), target / "vae_encoder",
           ["sample", "return_dict"], ["latent_sample"], {"sample": channels})
    vae.forward = lambda latents, return_dict: vae.decode(latents, return_dict)
    export(vae, (torch.randn(1, 4, 8, 8), False), target / "vae_decoder",
           ["latent_sample", "return_dict"], ["sample"], {"latent_sample": channels})
    index = {"_class_name": "OnnxStableDiffusionPipeline", "_diffusers_version": "0.11.0"}
    (target / "model_index.json").write_text(json.dumps(index) + "\n")


def half(source, target, pipeline):
    """Exports in f16, with fixed sizes except for the text's batch. The encoder returns the
    mode."""
    pipeline = pipeline.to(torch.float16)
    config = pipeline.unet.config
    side = 8 * 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
    randn = lambda *shape: torch.randn(shape).to(torch.float16)
    export(pipeline.text_encoder, torch.zeros((1, 77), dtype=torch.int64), target / "text_encoder",
           ["input_ids"], ["last_hidden_state", "pooler_output"], {})
    export(pipeline.unet,
           (randn(1, config.in_channels, 8, 8), torch.tensor(7.0).to(torch.float16),
            randn(1, 77, config.cross_attention_dim), False),
           target / "unet", ["sample", "timestep", "encoder_hidden_states", "return_dict"],
           ["out_sample"], {})
    vae = pipeline.vae
    vae.forward = lambda sample: vae.encode(sample, False)[0].mode()
    export(vae, (randn(1, 3, side, side),), target / "vae_encoder", ["sample"], ["latent_sample"], {})
    vae.forward = lambda latents: vae.decode(latents, False)
    export(vae, (randn(1, 4, 8, 8),), target / "vae_decoder", ["latent_sample"], ["sample"], {})
    for component in ("text_encoder", "unet", "vae"):
        to = target / ("vae_decoder" if component == "vae" else component)
        shutil.copy(source / component / "config.json", to)
    shutil.copy(source / "model_index.json", target)


def export(model, arguments, folder, inputs, outputs, dynamic_axes):
    folder.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(model, arguments, str(folder / "model.onnx"), input_names=inputs,
                      output_names=outputs, dynamic_axes=dynamic_axes, do_constant_folding=True,
                      opset_version=14, dynamo=False)


# The name of a folder, the family whose weights it has, and the function that exports it.
SHAPES = {
    "optimum-sd1": ("bk-small", optimum),
    "optimum-sd2": ("sd2-v", optimum),
    "optimum-inpaint": ("inpaint", optimum),
    "optimum-lcm": ("lcm", optimum),
    "optimum-xl": ("sdxl-base", optimum),
    "diffusers-2022": ("sd2-base", diffusers_2022),
    "half": ("bk-tiny", half),
}


def main():
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES))
    arguments = arguments.parse_args()
    settle()
    for name in arguments.shape:
        make(name)
        size = sum(file.stat().st_size for file in (HERE / "exports" / name).iterdir())
        print(f"{name}: {size} bytes", flush=True)


def settle():
    for line in (HERE / "exports-requirements.txt").read_text().split():
        name, version = line.split("==")
        found = importlib.metadata.version(name)
        assert found == version, f"{name} is {found}, expected {version}"
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    warnings.filterwarnings("ignore")
    diffusers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)


def make(name):
    family, exporter = SHAPES[name]
    tensors = recipes_of(family)
    folder = HERE / "exports" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as temporary:
        source, target = Path(temporary) / "source", Path(temporary) / "target"
        target.mkdir()
        write_source(family, tensors, source)
        pipeline = diffusers.DiffusionPipeline.from_pretrained(source)
        torch.manual_seed(0)
        exporter(source, target, pipeline)
        places = {}
        for component in FOLDERS:
            if (target / component).exists():
                places[component] = keep(component, target, folder, tensors)
        copy_json(target / "model_index.json", folder / "model_index.json")
    lines = [f'"{component}":{json.dumps(files, separators=(",", ":"))}'
             for component, files in places.items()]
    record = f'{{"family":"{family}",\n"places":{{{",".join(lines)}}}}}\n'
    (folder / "weights.json").write_text(record)


def recipes_of(family):
    """Returns the tensors of each component of a family, in float32. See `tensor_of` in make.py."""
    found = {}
    for component, recipes in json.loads((HERE / "families" / family / "weights.json").read_text()).items():
        found[component] = {}
        for recipe in recipes:
            generator = torch.Generator().manual_seed(recipe["seed"])
            values = torch.randn(math.prod(recipe["shape"]), generator=generator)
            values = values * torch.tensor(recipe["scale"]) + torch.tensor(recipe["offset"])
            values = values.to(torch.float16).to(torch.float32).reshape(recipe["shape"])
            found[component][recipe["name"]] = values
    return found


def write_source(family, tensors, folder):
    """Writes the model as a folder that the older transformers reads."""
    source = HERE / "families" / family
    for component, weights in tensors.items():
        (folder / component).mkdir(parents=True)
        shutil.copy(source / f"{component}.json", folder / component / "config.json")
        file = "diffusion_pytorch_model"
        if component.startswith("text_encoder"):
            file = "model"
            # Today, the names of one of the two classes have no prefix.
            whole = ("text_projection.", "text_model.")
            weights = {k if k.startswith(whole) else f"text_model.{k}": v for k, v in weights.items()}
        safetensors.torch.save_file({k: v.contiguous() for k, v in weights.items()},
                                    folder / component / f"{file}.safetensors", {"format": "pt"})
    for suffix in ("", "_2"):
        config = source / f"tokenizer_config{suffix}.json"
        if config.exists():
            target = folder / f"tokenizer{suffix}"
            target.mkdir()
            shutil.copy(config, target / "tokenizer_config.json")
            for file in ("vocab.json", "merges.txt"):
                shutil.copy(HERE / "tokenizer" / file, target)
            special(target)
    (folder / "scheduler").mkdir()
    shutil.copy(source / "scheduler.json", folder / "scheduler" / "scheduler_config.json")
    index = json.loads((source / "model_index.json").read_text())
    for key in ("safety_checker", "feature_extractor", "image_encoder"):
        if key in index:
            index[key] = [None, None]
    index["requires_safety_checker"] = False
    (folder / "model_index.json").write_text(json.dumps(index))


def special(folder):
    """Writes the old name of the tokenizer's class, which older versions need."""
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = "CLIPTokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def keep(component, target, folder, tensors):
    """Stores the files of a component with zeros for its weights. Returns the places of the
    weights: for each file a list of byte, length, tensor, and whether the tensor is transposed."""
    weights = tensors["vae" if component.startswith("vae") else component]
    model = onnx.load(target / component / "model.onnx")
    found = {}
    files = sorted(file for file in (target / component).iterdir() if file.suffix != ".json")
    contents = {file.name: bytearray(file.read_bytes()) for file in files}
    raws = [it.raw_data for it in tensors_in(model.graph) if len(it.raw_data) >= LEAST]
    by_bytes = {}
    for name, tensor in weights.items():
        for transposed in (False, True):
            if transposed and tensor.ndim != 2:
                continue
            for dtype in ("f4", "f2"):
                values = numpy.ascontiguousarray((tensor.T if transposed else tensor).numpy())
                by_bytes.setdefault(values.astype(dtype).tobytes(), (name, transposed))
    left = 0
    for raw in raws:
        if raw not in by_bytes:
            left += len(raw)
            continue
        name, transposed = by_bytes[raw]
        for file, content in contents.items():
            at = content.find(raw)
            if at >= 0:
                content[at : at + len(raw)] = bytes(len(raw))
                found.setdefault(file, []).append([at, len(raw), name, transposed])
                break
        else:
            raise AssertionError(f"{component}: {name} is in no file")
    for file, content in contents.items():
        with open(folder / f"{component}.{file}.gz", "wb") as stored:
            with gzip.GzipFile(fileobj=stored, mode="wb", mtime=0, filename="") as packed:
                packed.write(content)
    config = target / component / "config.json"
    if config.exists():
        copy_json(config, folder / f"{component}.json")
    ports = {kind: [f"{port.name}: {shown(port)}" for port in ports]
             for kind, ports in (("in", model.graph.input), ("out", model.graph.output))}
    print(f"  {component}: {ports}, {left} bytes kept", flush=True)
    return found


def copy_json(source, target):
    """Copies a configuration without the path of the folder that it was made in."""
    config = json.loads(source.read_text())
    config.pop("_name_or_path", None)
    target.write_text(json.dumps(config, indent=1) + "\n")


def tensors_in(graph):
    """Returns the initializers and the constants of the nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t


def shown(port):
    tensor = port.type.tensor_type
    sides = [side.dim_param or side.dim_value for side in tensor.shape.dim]
    return f"{onnx.TensorProto.DataType.Name(tensor.elem_type)} {sides}"


if __name__ == "__main__":
    main()
