"""Compares this project with other engines, on one model and one CPU.

    cargo build --release -p benches -p sd-examples --bin stage --example convert
    python compare.py MODEL [--also DIR] [--engines NAME ...] [--parts NAME ...] [--rounds 2]
                      [--work DIR] [--json FILE] [--markdown FILE] [--plot FILE] [...]

MODEL is a diffusers folder of SD 1.x, SD 2.x or SDXL. In each round every engine runs every part
once, on the same inputs and each time in a new process. The engines take turns. `--list` shows the
engines. `--also` adds rows of this project for the same model with weights of another type.

A sitting can be split: a run with the `--json` file of an earlier run adds its rounds to the file.
With `--rounds 0` the program only reports the file.

    load    median seconds until the part can be called, with the files in the page cache
    call    seconds of a call, after one call that does not count
    anon    the largest sample of the process's anonymous memory, imports included
    peak    the process's largest resident set (VmHWM), which includes pages of mapped files
    error   relative L2 distance of the output from the output of diffusers in f32
"""

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import numpy

import memory
import peers
import report

HERE = Path(__file__).parent


def main():
    options = parsed()
    if options.list:
        return print(
            "\n".join(f"{engine.name:34}{' '.join(engine.parts)}" for engine in peers.ENGINES)
        )
    if not (options.model / "unet" / "config.json").exists():
        sys.exit(f"{options.model} is not a diffusers folder: it has no unet/config.json")
    check_versions()
    sitting = opened(options)
    with tempfile.TemporaryDirectory() as temporary:
        options.work = (options.work or Path(temporary)).absolute()
        if options.rounds:
            turn = planned(options, sitting)
            for _ in range(options.rounds):
                measure_round(turn, options, sitting)
                save(options, sitting)
    if not options.disturbed:
        sitting = report.undisturbed(sitting)
    text = report.markdown(sitting)
    print(text)
    if options.markdown:
        options.markdown.write_text(text)
    if options.plot:
        report.plot(sitting, options.plot)


def parsed():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, nargs="?", default=Path())
    parser.add_argument(
        "--list", action="store_true", help="print the names of the engines and their parts"
    )
    parser.add_argument(
        "--also", type=Path, metavar="DIR", help="a second folder for the rows of this project"
    )
    parser.add_argument(
        "--engines", nargs="+", default=["*"], metavar="NAME", help="patterns such as 'diffusers/*'"
    )
    parser.add_argument(
        "--parts", nargs="+", default=[*peers.NETWORKS, *peers.PICTURE], metavar="NAME"
    )
    parser.add_argument("--latents", default="64x64", metavar="WxH", help="64x64 is 512x512 pixels")
    parser.add_argument("--threads", type=int, default=0, help="0: each engine's default")
    parser.add_argument(
        "--calls", type=int, default=5, help="UNet calls; half as many of the VAE, and one picture"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="folder for graphs and outputs, which later runs use again",
    )
    parser.add_argument(
        "--genai", type=Path, metavar="DIR", help="the model as exported by optimum-intel"
    )
    parser.add_argument(
        "--no-export", action="store_true", help="skip torch.onnx.export: SDXL's needs over 24 GB"
    )
    parser.add_argument(
        "--python",
        nargs="+",
        default=[],
        metavar="FAMILY=FILE",
        help="the interpreter for an engine whose packages conflict with the others",
    )
    parser.add_argument(
        "--disturbed",
        action="store_true",
        help="also count runs during which other programs were busy",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="all measurements")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="an SVG or PNG, by matplotlib")
    options = parser.parse_args()
    options.python = dict(pair.split("=", 1) for pair in options.python)
    return options


def check_versions():
    for line in (HERE / "requirements.txt").read_text().split():
        name, wanted = line.split("==")
        found = metadata.version(name).split("+")[0]
        assert found == wanted, f"{name} is {found}, the comparison is pinned to {wanted}"


def opened(options):
    """Returns the sitting in the file, or a new one."""
    settings = dict(model=options.model.name, latents=options.latents, threads=options.threads)
    if options.json and options.json.exists():
        sitting = json.loads(options.json.read_text())
        assert sitting["settings"] == settings, (
            f"{options.json} has the settings {sitting['settings']}, expected {settings}"
        )
        return sitting
    done = subprocess.run(
        [sys.executable, HERE / "flops.py", options.model, options.latents],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    names = ("torch", "diffusers", "transformers", "onnxruntime", "openvino")
    return dict(
        settings=settings,
        machine=machine(),
        versions={name: version(name) for name in names},
        flops=json.loads(done.stdout),
        rounds=0,
        rates=[],
        runs=[],
        errors={},
        left_out={},
    )


def machine():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return dict(
        cpu=cpu.get("model name"),
        family=cpu.get("cpu family"),
        model=cpu.get("model"),
        cores=os.cpu_count(),
        amx="amx_tile" in cpu.get("flags", ""),
        memory_gb=round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
    )


def version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def planned(options, sitting):
    """Writes the files that the engines need, and returns the rows of a round.

    A row is (name, engine, folder).
    """
    wanted = [
        engine
        for engine in peers.ENGINES
        if any(fnmatch.fnmatch(engine.name, pattern) for pattern in options.engines)
    ]
    if not wanted:
        sys.exit(f"no engine is called {' or '.join(options.engines)}; --list shows the names")
    rows = []
    for engine in wanted:
        if reason := peers.missing(engine, options):
            sitting["left_out"][engine.name] = reason
            continue
        try:
            peers.prepare(engine, options)
        except subprocess.CalledProcessError:
            sitting["left_out"][engine.name] = (
                "its input files could not be written; the message is above"
            )
            continue
        sitting["left_out"].pop(engine.name, None)
        rows.append((engine.name, engine, options.model))
        if engine.module is None and options.also:
            rows.append((f"{engine.name} from {stored_type(options.also)}", engine, options.also))
    return rows


def stored_type(folder):
    """Returns the type of the UNet's weights in a folder."""
    file = next((folder / "unet").glob("*.safetensors"))
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    return header["conv_in.weight"]["dtype"].lower()


def measure_round(rows, options, sitting):
    sitting["rounds"] += 1
    printed, _ = memory.run([sys.executable, HERE / "machine.py"])
    sitting["rates"].append(json.loads(printed))
    for part in options.parts:
        for name, engine, folder in rows:
            if part not in engine.parts or name in sitting["left_out"]:
                continue
            dump = output(options, part, name)
            dump.parent.mkdir(parents=True, exist_ok=True)
            try:
                figures = peers.run(engine, part, folder, options, dump)
            except memory.Failed as error:
                sitting["left_out"][name] = f"{part} failed: {error}"
                continue
            sitting["runs"].append(dict(round=sitting["rounds"], engine=name, part=part) | figures)
            print(
                f"round {sitting['rounds']} {part} {name}: {min(figures['calls_s']):.3f} s",
                file=sys.stderr,
            )
        for name in {run["engine"] for run in sitting["runs"] if run["part"] == part}:
            if (error := distance(options, part, name)) is not None:
                sitting["errors"].setdefault(part, {})[name] = error


def output(options, part, name):
    return (
        options.work
        / "outputs"
        / f"{part}-{options.latents}-{name.replace('/', '-').replace(' ', '-')}.f32"
    )


def distance(options, part, name):
    """Returns the relative L2 distance from the reference, or None unless both have run."""
    files = output(options, part, name), output(options, part, peers.REFERENCE)
    if not all(file.exists() for file in files):
        return None
    found, expected = (numpy.fromfile(file, "<f4") for file in files)
    return float(numpy.linalg.norm(found - expected) / numpy.linalg.norm(expected))


def save(options, sitting):
    if options.json:
        options.json.write_text(json.dumps(sitting, indent=1) + "\n")


if __name__ == "__main__":
    main()
