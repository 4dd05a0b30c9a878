"""The engines of the comparison, and how an engine runs a part of a model."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import memory

HERE = Path(__file__).parent
RELEASE = Path(os.environ.get("CARGO_TARGET_DIR", HERE.parents[1] / "target")) / "release"
NETWORKS = ("unet", "vae-decoder")
PICTURE = ("picture",)
REFERENCE = "diffusers/f32"  # an error is the distance from this engine's output


@dataclass(frozen=True)
class Engine:
    name: str  # family/…/precision
    module: str | None  # in `engines`; None is this project
    precision: str
    parts: tuple = NETWORKS + PICTURE
    layout: str = ""
    options: tuple = ()  # for `stage`
    package: str | None = None  # needed in addition to requirements.txt

    @property
    def family(self):
        return self.name.split("/")[0]


def ours(device, precision, low_memory=False):
    """Returns a row of this project.

    With low memory it draws only pictures, because only there networks are unloaded in between.
    """
    name, options = f"sd-onnx/{device}/{precision}", ("--device", device, "--precision", precision)
    if low_memory:
        return Engine(
            f"{name}/low-memory", None, precision, PICTURE, options=(*options, "--low-memory")
        )
    return Engine(name, None, precision, options=options)


ENGINES = [
    ours("cpu", "f32"),
    ours("openvino", "f32"),
    ours("openvino", "bf16"),
    ours("cpu", "f32", low_memory=True),
    ours("openvino", "f32", low_memory=True),
    ours("openvino", "bf16", low_memory=True),
    Engine(REFERENCE, "diffusers_torch", "f32"),
    Engine("diffusers/f32/channels-last", "diffusers_torch", "f32", layout="channels-last"),
    Engine("diffusers/bf16", "diffusers_torch", "bf16"),
    Engine("diffusers/bf16/channels-last", "diffusers_torch", "bf16", layout="channels-last"),
    Engine("openvino-api/f32", "openvino_api", "f32", NETWORKS, package="openvino"),
    Engine("openvino-api/bf16", "openvino_api", "bf16", NETWORKS, package="openvino"),
    Engine(
        "openvino-genai/f32", "openvino_genai_pipeline", "f32", PICTURE, package="openvino-genai"
    ),
    Engine(
        "openvino-genai/bf16", "openvino_genai_pipeline", "bf16", PICTURE, package="openvino-genai"
    ),
    Engine("torch-export/f32", "onnx_export", "f32", NETWORKS),
    Engine(
        "stable-diffusion.cpp/f16", "sd_cpp", "f16", PICTURE, package="stable-diffusion-cpp-python"
    ),
]


def missing(engine, options):
    """Returns the reason why the engine cannot run, or None if it can."""
    if engine.family == "openvino-genai" and options.genai is None:
        return "no --genai DIR"
    if engine.family == "torch-export" and options.no_export:
        return "--no-export"
    if engine.package and engine.family not in options.python:
        try:
            metadata.version(engine.package)
        except metadata.PackageNotFoundError:
            return f"{engine.package} is not installed"
    return None


def run(engine, part, folder, options, dump):
    """Runs one part in a new process and returns its figures."""
    calls = {"unet": options.calls, "vae-decoder": (options.calls + 1) // 2, "picture": 1}[part]
    if engine.module is None:
        width, height = options.latents.split("x")
        command = [
            RELEASE / "stage",
            folder,
            part,
            "--width",
            width,
            "--height",
            height,
            "--calls",
            calls,
            "--threads",
            options.threads,
            "--dump",
            dump,
            *engine.options,
        ]
    else:
        python = options.python.get(engine.family, sys.executable)
        command = [
            python,
            HERE / "worker.py",
            engine.module,
            job(engine, part, options),
            calls,
            dump,
        ]
    printed, peaks = memory.run(command)
    figures = json.loads(printed.splitlines()[-1])
    return {name: figures[name] for name in ("load_s", "calls_s", "bare_anon_mb")} | peaks


def job(engine, part, options):
    exports = options.genai if engine.family == "openvino-genai" else options.work / "exports"
    return json.dumps(
        dict(
            part=part,
            precision=engine.precision,
            layout=engine.layout,
            model=str(options.model),
            graphs=str(options.work / "graphs"),
            checkpoint=str(options.work / "checkpoint.safetensors"),
            exports=str(exports),
            latents=options.latents,
            threads=options.threads,
        )
    )


def prepare(engine, options):
    """Writes the files that the engine reads, unless they exist.

    Raises subprocess.CalledProcessError if they cannot be written.
    """
    converted = {
        "openvino-api": ("graphs", "onnx"),
        "stable-diffusion.cpp": ("checkpoint.safetensors", "file"),
    }
    if engine.family in converted:
        file, form = converted[engine.family]
        if not (options.work / file).exists():
            options.work.mkdir(parents=True, exist_ok=True)
            command = [
                RELEASE / "examples" / "convert",
                options.model,
                options.work / file,
                "--to",
                form,
            ]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    if engine.family == "torch-export":
        for part in set(engine.parts) & set(options.parts):
            subprocess.run(
                [sys.executable, HERE / "worker.py", "--export", job(engine, part, options)],
                check=True,
            )
