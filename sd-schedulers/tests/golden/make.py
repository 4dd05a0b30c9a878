"""Writes the golden files of this folder with the reference implementations.

The Rust tests only read the files.

    pip install -r requirements.txt
    pip install --no-deps k-diffusion==0.1.1.post1
    python make.py [schedules defaults randn samplers classes] [--k-diffusion sampling.py]

Without a name, it writes all of them in that order. This takes minutes, because two of diffusers'
classes are slow. ladders.py and noise.py write their own files, and authors.py only compares. An
x86-64 processor with AVX2 is needed, because torch's scalar `randn` differs in the last bits.

k-diffusion cannot be imported next to these versions, but its `sampling.py` alone can. It comes
from the installed package or from the given file.
"""

import argparse
import ast
import inspect
import json
import sys
from pathlib import Path

sys.dont_write_bytecode = True

import diffusers  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from diffusers import DDIMScheduler, EulerDiscreteScheduler  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

import classes  # noqa: E402
import suite  # noqa: E402

VERSIONS = {"diffusers": diffusers.__version__, "numpy": np.__version__, "torch": torch.__version__.split("+")[0]}
assert VERSIONS == {"diffusers": "0.42.1", "numpy": "2.4.6", "torch": "2.15.0"}, VERSIONS
assert torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")

HERE = Path(__file__).parent
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def bits(values):
    values = torch.as_tensor(values).to(torch.float32).contiguous().flatten()
    return [v & 0xFFFFFFFF for v in values.view(torch.int32).tolist()]


def write(name, header, rows):
    """Writes one row per line, so that a diff shows where a change is."""
    parts = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in {"versions": VERSIONS, **header}.items()]
    for key, lines in rows.items():
        parts.append(f"{json.dumps(key)}: [\n" + ",\n".join(json.dumps(line) for line in lines) + "\n]")
    (HERE / name).write_text("{" + ",\n".join(parts) + "}\n")


def schedules():
    """Writes the alpha-bars of noise schedules in float32, each with its configuration."""
    configs = {
        "sd": SD,
        "linear": {},
        "cosine": {"beta_schedule": "squaredcos_cap_v2"},
        "zero-snr": {**SD, "rescale_betas_zero_snr": True},
        "odd": {**SD, "num_train_timesteps": 37},
        "two": {"num_train_timesteps": 2},
        "trained": {"num_train_timesteps": 5, "trained_betas": [0.001, 0.02, 0.003, 0.4, 0.05]},
        "trained-zero-snr": {
            "num_train_timesteps": 5,
            "trained_betas": [0.001, 0.02, 0.003, 0.4, 0.05],
            "rescale_betas_zero_snr": True,
        },
    }
    tensors, lookups = {}, []
    for name, config in configs.items():
        scheduler = EulerDiscreteScheduler.from_config(config)
        tensors[name] = scheduler.alphas_cumprod
        sigmas = np.array(((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod) ** 0.5)
        logs = np.log(sigmas)
        top = len(sigmas) - 1
        t = np.array([0.0, 0.25, 0.5 * top, top - 0.125, top, top + 3.0], dtype=np.float32)
        s = np.interp(t, np.arange(len(sigmas)), sigmas).astype(np.float32)
        s = np.concatenate([s, [np.float32(1e-3), np.float32(1e4)]]).astype(np.float32)
        back = np.array([scheduler._sigma_to_t(v, logs) for v in s.astype(np.float64)])
        lookups.append({
            "name": name,
            "config": {"_class_name": "EulerDiscreteScheduler", **config},
            "timesteps": bits(t),
            "sigmas": bits(s),
            "back": bits(back),
        })
    save_file(tensors, HERE / "schedules.safetensors", metadata={"versions": json.dumps(VERSIONS)})
    write("schedules.json", {}, {"schedules": lookups})


def defaults():
    """Writes the defaults of each class of a diffusion model.

    They are read from the source, because some classes need further packages to be imported.
    """
    keys = ["num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type", "steps_offset"]
    keys += ["set_alpha_to_one", "clip_sample", "clip_sample_range", "rescale_betas_zero_snr"]
    folder = Path(inspect.getfile(DDIMScheduler)).parent
    known = (HERE / "../../src/config/class.rs").resolve().read_text().split("static OTHERS")[0]
    rows = []
    for path in sorted(folder.glob("scheduling_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and f'("{node.name}"' in known:
                init = next(f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__")
                names = [a.arg for a in init.args.args][-len(init.args.defaults) :]
                values = dict(zip(names, init.args.defaults))
                row = {k: ast.literal_eval(values[k]) for k in keys if k in values}
                if "beta_schedule" in row:
                    rows.append({"_class_name": node.name, **row})
    write("defaults.json", {}, {"classes": rows})


def randn():
    """Writes torch's CPU randn: two draws in a row for every small count, then long and mixed
    draws."""
    tensors = {}
    for seed in (0, 1, 2**32 + 1, 2**64 - 1):
        generator = torch.Generator().manual_seed(seed)
        runs = [[n, n] for n in range(1, 41)] if seed < 2 else [[5, 33]]
        runs += [[3, 20, 5], [20, 3, 16, 1], [1000, 1003]] + ([[16384]] if seed == 0 else [])
        for run in runs:
            generator.manual_seed(seed)
            drawn = [torch.randn(n, generator=generator) for n in run]
            tensors["_".join(map(str, [seed] + run))] = torch.cat(drawn)
    assert torch.equal(tensors["1_3_20_5"], tensors[f"{2**32 + 1}_3_20_5"])
    save_file(tensors, HERE / "randn.safetensors", metadata={"versions": json.dumps(VERSIONS)})


if __name__ == "__main__":
    files = {
        "schedules": schedules,
        "defaults": defaults,
        "randn": randn,
        "samplers": lambda: suite.write(HERE, VERSIONS, arguments.k_diffusion),
        "classes": lambda: classes.write(HERE, VERSIONS),
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(files))
    parser.add_argument("--k-diffusion", metavar="FILE", help="k-diffusion's sampling.py")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(files):
        parser.error(f"{', '.join(sorted(unknown))}: expected {', '.join(files)}")
    for name in arguments.names or files:
        files[name]()
    for path in HERE.glob("*.safetensors"):
        path.chmod(0o644)
