"""The same model in this project, in ONNX Runtime on a plain torch.onnx export, and in diffusers.

    cargo build --release -p benches
    compare.py MODEL [--also DIR] [--latents 64x64] [--threads N] [--runs 5] [--rounds 1] [--bf16]
               [--exports DIR | --no-export] [--json FILE]

MODEL is a diffusers folder of SD 1.x, SD 2.x or SDXL. The UNet and the VAE decoder are exported once (f32, weights as
external data) into DIR, by default a temporary folder; then each engine runs each network in a process of its own, one
image, on the CPU. With `--rounds` the engines take turns so many times; a row then has the median of the rounds' loads
and calls, and the largest peak.

The rows `sd-onnx` are the program `stage` of this package on MODEL, and on DIR too (the same model in half precision, say).

    load    seconds until the network can be called: InferenceSession(...), or from_pretrained(...); files warm in the page cache
    call    median seconds of a call, after one that is not counted
    peak    the process's largest resident set (VmHWM), imports included; `bare` is what it was before the load
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy

CONTEXT = 77  # tokens of a CLIP window


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model", type=Path)
    arguments.add_argument("--also", type=Path, metavar="DIR", help="a second folder for the sd-onnx rows")
    arguments.add_argument("--latents", default="64x64", metavar="WxH", help="64x64 is 512x512 pixels")
    arguments.add_argument("--threads", type=int, default=0, help="0: each engine's default")
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--bf16", action="store_true", help="diffusers in bfloat16 too")
    arguments.add_argument("--rounds", type=int, default=1)
    arguments.add_argument("--exports", type=Path, metavar="DIR", help="keep the exports, and use those that are there")
    arguments.add_argument("--no-export", action="store_true",
                           help="leave out the plain export: making SDXL's needs more than 24 GB")
    arguments.add_argument("--json", type=Path, metavar="FILE")
    arguments.add_argument("--step", nargs=3, help=argparse.SUPPRESS)  # one process: STEP PART DTYPE
    arguments = arguments.parse_args()
    if not (arguments.model / "unet" / "config.json").exists():
        sys.exit(f"{arguments.model} is not a diffusers folder: it has no unet/config.json")
    check_versions()
    if arguments.step:
        step, part, dtype = arguments.step
        print(json.dumps(STEPS[step](arguments, part, dtype)))
        return

    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        arguments.exports = arguments.exports or Path(temporary)
        plan = [("onnxruntime", "float32")] * (not arguments.no_export)
        plan += [("diffusers", "float32")] + [("diffusers", "bfloat16")] * arguments.bf16
        folders = [arguments.model] + [arguments.also] * (arguments.also is not None)
        for part in ("unet", "vae_decoder"):
            if not arguments.no_export and not onnx_file(arguments, part).exists():
                in_process(arguments, "export", part, "float32")
            rounds = []
            for _ in range(arguments.rounds):
                turn = [run_sd_onnx(arguments, part, folder) for folder in folders]
                rounds.append(turn + [in_process(arguments, step, part, dtype) for step, dtype in plan])
            rows += [merged(engine) for engine in zip(*rounds)]
            if arguments.no_export:
                continue
            # A comparison of speed means something when both engines computed the same thing.
            exported, original = (numpy.load(answer_file(arguments, part, engine)) for engine, _ in plan[:2])
            apart = numpy.linalg.norm(exported - original) / numpy.linalg.norm(original)
            assert apart <= 1e-3, f"{part}: the two engines' answers are {apart:.1e} apart"
    print(f"{'engine':14}{'type':10}{'network':13}{'load s':>9}{'call s':>9}{'least s':>9}"
          f"{'bare MB':>9}{'peak MB':>9}")
    for row in rows:
        print(f"{row['engine']:14}{row['dtype']:10}{row['network']:13}{row['load_s']:9.3f}{row['call_s']:9.3f}"
              f"{row['fastest_s']:9.3f}{row['bare_mb']:9.0f}{row['peak_mb']:9.0f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(dict(
            model=arguments.model.name, latents=arguments.latents, threads=arguments.threads, runs=arguments.runs,
            rounds=arguments.rounds, versions={name: version(name) for name in ("torch", "diffusers", "onnxruntime")},
            rows=rows), indent=1) + "\n")


def merged(rows):
    """One row for an engine's rounds."""
    together = dict(load_s=statistics.median, call_s=statistics.median, fastest_s=min, slowest_s=max,
                    bare_mb=max, peak_mb=max)
    return rows[0] | {key: join(row[key] for row in rows) for key, join in together.items()}


def check_versions():
    for line in (Path(__file__).parent / "requirements.txt").read_text().split():
        name, wanted = line.split("==")
        assert version(name) == wanted, f"{name} is {version(name)}, the comparison is pinned to {wanted}"


def in_process(arguments, step, part, dtype):
    """Runs one step in a process of its own, so that neither time nor memory of one leaks into another."""
    command = [sys.executable, __file__, arguments.model, "--latents", arguments.latents, "--threads", arguments.threads,
               "--runs", arguments.runs, "--exports", arguments.exports, "--step", step, part, dtype]
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"{step} of {part} in {dtype} failed; its message is above")
    return json.loads(done.stdout.splitlines()[-1])


def run_sd_onnx(arguments, part, folder):
    target = Path(os.environ.get("CARGO_TARGET_DIR", Path(__file__).parents[2] / "target"))
    stage = target / "release" / "stage"
    width, height = arguments.latents.split("x")
    command = [stage, folder, part.replace("_", "-"), "--calls", arguments.runs, "--width", width, "--height", height,
               "--threads", arguments.threads]
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, text=True, check=True)
    return dict(engine="sd-onnx", dtype=stored_type(folder), network=part) | json.loads(done.stdout)


def stored_type(folder):
    """The type of the UNet's weights in the folder."""
    file = next((folder / "unet").glob("*.safetensors"))
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    return {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[header["conv_in.weight"]["dtype"]]


def onnx_file(arguments, part):
    return arguments.exports / f"{part}-{arguments.latents}" / "model.onnx"


def answer_file(arguments, part, engine):
    return arguments.exports / f"{part}-{arguments.latents}" / f"{engine}.npy"


def export(arguments, part, dtype):
    import torch

    file = onnx_file(arguments, part)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.set_grad_enabled(False)
    network, inputs = torch_network(arguments, part, torch.float32)
    torch.onnx.export(network, tuple(inputs.values()), file, input_names=list(inputs), output_names=["out"],
                      external_data=True, dynamo=True, optimize=True, verbose=False)
    return {}


def run_onnxruntime(arguments, part, dtype):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = arguments.threads
    inputs = numpy_inputs(arguments, part)
    bare, start = peak_mb(), time.perf_counter()
    session = onnxruntime.InferenceSession(onnx_file(arguments, part), options, providers=["CPUExecutionProvider"])
    load = time.perf_counter() - start
    return measured(arguments, "onnxruntime", dtype, part, bare, load, lambda: session.run(None, inputs)[0])


def run_diffusers(arguments, part, dtype):
    import torch

    torch.set_grad_enabled(False)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: F401 - their import is no part of the load

    bare, start = peak_mb(), time.perf_counter()
    network, inputs = torch_network(arguments, part, getattr(torch, dtype))
    load = time.perf_counter() - start
    return measured(arguments, "diffusers", dtype, part, bare, load, lambda: network(*inputs.values()).float().numpy())


STEPS = {"export": export, "onnxruntime": run_onnxruntime, "diffusers": run_diffusers}


def measured(arguments, engine, dtype, part, bare, load, call):
    answer, seconds = call(), []
    for _ in range(arguments.runs):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    assert numpy.isfinite(answer).all()
    peak = peak_mb()
    if dtype == "float32":
        file = answer_file(arguments, part, engine)
        file.parent.mkdir(parents=True, exist_ok=True)
        numpy.save(file, answer)
    return dict(engine=engine, dtype=dtype, network=part, load_s=load, call_s=statistics.median(seconds),
                fastest_s=min(seconds), slowest_s=max(seconds), bare_mb=bare, peak_mb=peak)


def peak_mb():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmHWM in /proc/self/status: this needs Linux")


def numpy_inputs(arguments, part):
    """The same numbers for every engine."""
    unet = json.loads((arguments.model / "unet" / "config.json").read_text())
    width, height = map(int, arguments.latents.split("x"))
    random = numpy.random.default_rng(0)

    def normal(*shape):
        return random.standard_normal(shape, dtype=numpy.float32)

    sample = normal(1, unet["in_channels"], height, width)
    if part == "vae_decoder":
        return dict(latents=sample)
    inputs = dict(sample=sample, timestep=numpy.array([500.0], dtype=numpy.float32),
                  encoder_hidden_states=normal(1, CONTEXT, unet["cross_attention_dim"]))
    if unet.get("addition_embed_type") == "text_time":
        pooled = unet["projection_class_embeddings_input_dim"] - 6 * unet["addition_time_embed_dim"]
        sides = [8 * height, 8 * width]
        inputs |= dict(text_embeds=normal(1, pooled),
                       time_ids=numpy.array([[*sides, 0, 0, *sides]], dtype=numpy.float32))
    return inputs


def torch_network(arguments, part, dtype):
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    class Unet(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unet = UNet2DConditionModel.from_pretrained(arguments.model, subfolder="unet",
                                                             torch_dtype=dtype, local_files_only=True)

        def forward(self, sample, timestep, encoder_hidden_states, text_embeds=None, time_ids=None):
            added = None if time_ids is None else dict(text_embeds=text_embeds, time_ids=time_ids)
            return self.unet(sample, timestep, encoder_hidden_states, added_cond_kwargs=added, return_dict=False)[0]

    class Decoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.vae = AutoencoderKL.from_pretrained(arguments.model, subfolder="vae",
                                                     torch_dtype=dtype, local_files_only=True)

        def forward(self, latents):
            return self.vae.decode(latents, return_dict=False)[0]

    network = (Unet if part == "unet" else Decoder)().eval()
    inputs = {name: torch.from_numpy(array).to(torch.float32 if name in ("timestep", "time_ids") else dtype)
              for name, array in numpy_inputs(arguments, part).items()}
    return network, inputs


if __name__ == "__main__":
    main()
