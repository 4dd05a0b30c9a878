"""Measures this project and diffusers on an NVIDIA GPU, and checks `Philox::cuda` against the card.

    pip install -r requirements.txt torchsde==0.2.6     # with torch's build for CUDA
    cargo build --release -p benches --bin stage
    python cuda.py MODEL [--latents 64x64] [--calls 20] [--rounds 3] [--dump DIR]

MODEL is a diffusers folder of SD 1.x, SD 2.x or SDXL. The engines take turns, each in a new process:
this project in f32 and f16, and diffusers in f16, plain and with `torch.compile`. The rows are a UNet
call without guidance, a VAE decode, and a picture of 20 steps of Euler with guidance, from the prompt
to pixels on the host. A call that does not count comes first. The figures are the median and the
least seconds of a call over all rounds, and the relative distance from the outputs of diffusers in
f32.

Without a card the program ends with an error. It has not run yet, because no machine of this project
has one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy
import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RELEASE = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
PARTS = ("unet", "vae-decoder", "picture")
REFERENCE = "diffusers/f32"
ENGINES = ("sd-onnx/f32", "sd-onnx/f16", REFERENCE, "diffusers/f16", "diffusers/f16/compiled")


def main():
    options = parsed()
    if not torch.cuda.is_available():
        sys.exit("torch finds no NVIDIA GPU: this program needs a card and torch's build for CUDA")
    if options.worker:
        return print(json.dumps(torch_part(options)))
    if not (RELEASE / "stage").exists():
        sys.exit(f"{RELEASE / 'stage'} is missing: cargo build --release -p benches --bin stage")
    check_philox()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {options.latents} latents")
    with tempfile.TemporaryDirectory() as folder:
        measure(options, options.dump or Path(folder))


def parsed():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--latents", default="64x64", help="width x height; 128x128 for SDXL")
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dump", type=Path, metavar="DIR", help="keep the outputs, as raw float32")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def check_philox():
    """Compares torch's noise on this card with the values that the Rust tests check."""
    sys.path.insert(0, str(ROOT / "sd-schedulers" / "tests" / "golden"))
    import noise

    card = torch.cuda.get_device_properties(0)
    threads = card.multi_processor_count * card.max_threads_per_multi_processor
    for seed in (0, 1, 2**32 + 7):
        generator, call = torch.Generator("cuda").manual_seed(seed), 0
        for count in (12, 5, 4 * 64 * 64, 4 * threads + 4097, 3):
            found = torch.randn(count, generator=generator, device="cuda").cpu().numpy()
            expected, calls = noise.cuda(seed, count, call, threads)
            call += calls
            apart = numpy.abs(found - expected).max()
            assert apart <= 1e-5, f"seed {seed}, {count} values: {apart} apart"
    print(f"Philox::cuda with {threads} threads draws the noise of this card, within 1e-5")


def measure(options, folder):
    folder.mkdir(parents=True, exist_ok=True)
    seconds = {}
    for _ in range(options.rounds):
        for part in PARTS:
            for engine in ENGINES:
                dump = folder / f"{part}.{engine.replace('/', '-')}.f32"
                seconds.setdefault((part, engine), []).extend(run(options, engine, part, dump))
    print(f"{'part':12} {'engine':24} {'median s':>10} {'least s':>10} {'distance':>10}")
    for (part, engine), all_calls in seconds.items():
        output, expected = (
            numpy.fromfile(folder / f"{part}.{name.replace('/', '-')}.f32", "<f4")
            for name in (engine, REFERENCE)
        )
        distance = numpy.linalg.norm(output - expected) / numpy.linalg.norm(expected)
        median, least = statistics.median(all_calls), min(all_calls)
        print(f"{part:12} {engine:24} {median:10.4f} {least:10.4f} {distance:10.1e}")


def run(options, engine, part, dump):
    """Returns the seconds of each call in a new process."""
    calls = str(3 if part == "picture" else options.calls)
    family, precision, *_ = engine.split("/")
    if family == "sd-onnx":
        width, height = options.latents.split("x")
        command = [RELEASE / "stage", options.model, part, "--device", "cuda", "--precision", precision]
        command += ["--width", width, "--height", height, "--calls", calls, "--dump", dump]
    else:
        command = [sys.executable, __file__, options.model, "--latents", options.latents]
        command += ["--calls", calls, "--worker", engine, part, dump]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])["calls_s"]


def torch_part(options):
    """Runs a part with diffusers, in this process."""
    engine, part, dump = options.worker
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    call = on_card(options, engine, part)
    seconds = []
    for number in range(options.calls + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        output = call(number)  # ends with a copy to the host, which waits for the card
        seconds.append(time.perf_counter() - start)
    output.astype("<f4").tofile(dump)
    return dict(calls_s=seconds[1:])


def on_card(options, engine, part):
    """Returns a function that runs the part and returns its output as float32 on the host."""
    from engines import Job, diffusers_torch

    none = dict.fromkeys(("graphs", "checkpoint", "exports"), Path())
    precision, *compiled = engine.split("/")[1:]
    job = Job(part, precision, "", options.model, latents=options.latents, threads=0, **none)

    def compiled_if_asked(module):
        return torch.compile(module, mode="max-autotune", fullgraph=True) if compiled else module

    if part == "picture":
        pipeline, draw = diffusers_torch.pipeline_and_draw(job)
        pipeline.to("cuda")
        pipeline.unet = compiled_if_asked(pipeline.unet)
        pipeline.vae.decode = compiled_if_asked(pipeline.vae.decode)
        return draw
    module, arguments = diffusers_torch.network(job)
    module = compiled_if_asked(module.to("cuda"))
    arguments = [argument.to("cuda") for argument in arguments.values()]
    return lambda call: module(*arguments).float().cpu().numpy()


if __name__ == "__main__":
    main()
