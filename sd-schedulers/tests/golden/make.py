"""Writes the golden files of this folder with the reference implementations. The Rust tests read the files only.

    pip install -r requirements.txt && python make.py

Needs an x86-64 processor with AVX2 (torch's scalar `randn` differs in the last bits). Floats are stored as bit patterns.

k-diffusion could not be installed beside these versions, so its formulas are checked against an exact solution instead:
see tests/convergence.rs.
"""

import ast
import inspect
import json
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
)
from safetensors.torch import save_file

VERSIONS = {"diffusers": diffusers.__version__, "numpy": np.__version__, "torch": torch.__version__.split("+")[0]}
assert VERSIONS == {"diffusers": "0.42.1", "numpy": "2.4.6", "torch": "2.15.0"}, VERSIONS
assert torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")

HERE = Path(__file__).parent
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SPACINGS = ["leading", "linspace", "trailing"]
SIZE = 20  # past 16 and no multiple of it: torch's randn takes its tail path


def bits(values):
    values = torch.as_tensor(values).to(torch.float32).contiguous().flatten()
    return [v & 0xFFFFFFFF for v in values.view(torch.int32).tolist()]


def write(name, header, rows):
    """One row a line, so that a difference shows where it is."""
    parts = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in {"versions": VERSIONS, **header}.items()]
    for key, lines in rows.items():
        parts.append(f"{json.dumps(key)}: [\n" + ",\n".join(json.dumps(line) for line in lines) + "\n]")
    (HERE / name).write_text("{" + ",\n".join(parts) + "}\n")


def plain(config):
    """What save_pretrained would write, less the private keys and what JSON lacks."""
    values = {k: v for k, v in config.items() if not k.startswith("_") and k != "lambda_min_clipped"}
    return values


def model(x, t):
    """A smooth stand-in for the UNet: float32 throughout, the same expression as `model` in tests/golden.rs."""
    t = torch.as_tensor(t, dtype=torch.float32)
    return x * (0.5 + 0.4 * (t / 1000)) + 0.2 * torch.sin(3 * x + t / 100)


def ladder(cls, steps, spacing, karras, **config):
    """`karras`: absent, "full" (the trained range) or "over" (the range of the spacing), whichever the class does."""
    extra = {"use_karras_sigmas": True} if karras else {}
    config = {**SD, **config, "timestep_spacing": spacing, **extra}
    scheduler = cls.from_config(config)
    scheduler.set_timesteps(steps)
    sigmas, timesteps = getattr(scheduler, "sigmas", None), scheduler.timesteps
    if cls is HeunDiscreteScheduler:  # every rung but the first is listed twice
        sigmas = torch.cat([sigmas[:1], sigmas[1:-1:2], sigmas[-1:]])
        timesteps = torch.cat([timesteps[:1], timesteps[1::2]])
    if cls is DDIMScheduler:  # has no sigmas: those of its alphas-bar
        bar = scheduler.alphas_cumprod[timesteps]
        sigmas = torch.cat([((1 - bar) / bar) ** 0.5, torch.zeros(1)])
    assert len(timesteps) == steps and len(sigmas) == steps + 1
    vp = cls in (DDIMScheduler, DPMSolverMultistepScheduler)
    scale = (sigmas[0] ** 2 + 1) ** 0.5 if vp else scheduler.init_noise_sigma
    return {
        "config": {"_class_name": cls.__name__, **config},
        "spacing": spacing,
        "karras": karras,
        "steps": steps,
        "sigmas": bits(sigmas),
        "timesteps": bits(timesteps),
        "initial_scale": bits(scale)[0],
    }


def trajectory(cls, steps, spacing, karras=None, eta=None, seed=0, **config):
    extra = {"use_karras_sigmas": True} if karras else {}
    config = {**SD, **config, "timestep_spacing": spacing, **extra}
    scheduler = cls.from_config(config)
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, SIZE, generator=generator) * scheduler.init_noise_sigma
    keywords = {}
    if cls in (DDIMScheduler, EulerAncestralDiscreteScheduler):
        keywords["generator"] = generator
    if eta is not None:
        keywords["eta"] = eta
    states = []
    for i, t in enumerate(scheduler.timesteps):
        output = model(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(output, t, x, **keywords).prev_sample
        # Heun is between two halves of a step unless it is in first order; its last step has no second half.
        if getattr(scheduler, "state_in_first_order", True) or i == len(scheduler.timesteps) - 1:
            states.append(x)
    assert len(states) == steps and all(torch.isfinite(s).all() for s in states)
    return {
        "config": {"_class_name": cls.__name__, **plain(scheduler.config)},
        "spacing": spacing,
        "karras": karras,
        "steps": steps,
        "eta": eta,
        "seed": seed,
        "states": [bits(s) for s in states],
    }


def sampler(name, cls, karras, predictions, more):
    """One file: every ladder of the class, then whole trajectories."""
    vp = cls in (DDIMScheduler, DPMSolverMultistepScheduler)
    ladders = []
    for spacing in SPACINGS:
        for kind in [None, karras] if karras else [None]:
            for steps in (1, 5, 10, 20, 50):
                # numpy's one-point linspace is [0], the *clean* end: this crate starts at T - 1 instead.
                if steps == 1 and spacing == "linspace" and cls is not DPMSolverMultistepScheduler:
                    continue
                ladders.append(ladder(cls, steps, spacing, kind))
    if karras:
        for steps in (5, 20):
            ladders.append(ladder(cls, steps, "trailing", karras, beta_schedule="squaredcos_cap_v2"))
    cases = []
    for prediction in predictions:
        for spacing in SPACINGS:
            cases.append(dict(steps=8, spacing=spacing, prediction_type=prediction))
        if karras:
            cases.append(dict(steps=10, spacing="leading", karras=karras, prediction_type=prediction))
    cases.append(dict(steps=20, spacing="leading", seed=7, steps_offset=0, beta_schedule="linear"))
    rows = [trajectory(cls, **case) for case in cases + more]
    states = [json.dumps(row["states"]) for row in rows]
    assert len(set(states)) == len(states), "a setting without an effect checks nothing"
    write(f"{name}.json", {"scaling": "vp" if vp else "ve", "size": SIZE}, {"ladders": ladders, "trajectories": rows})


def samplers():
    every = ["epsilon", "v_prediction", "sample"]
    zero_snr = dict(steps=6, spacing="trailing", prediction_type="v_prediction", rescale_betas_zero_snr=True)
    sampler("euler", EulerDiscreteScheduler, "over", every, [zero_snr])
    # The class raises NotImplementedError for "sample".
    sampler("euler-a", EulerAncestralDiscreteScheduler, None, every[:2], [zero_snr])
    clip = [dict(steps=8, spacing="linspace", clip_sample=True, clip_sample_range=r) for r in (1.0, 0.4)]
    sampler("heun", HeunDiscreteScheduler, "over", every, clip)
    sampler("dpmpp-2m", DPMSolverMultistepScheduler, "full", every, [zero_snr])
    more = []
    for eta in (0.0, 0.5, 1.0):
        for one in (True, False):
            # Trailing with 7 of 1000 steps ends at timestep 0, not before it, so there the setting has no effect.
            for spacing in SPACINGS if one else SPACINGS[:2]:
                more.append(dict(steps=7, spacing=spacing, eta=eta, set_alpha_to_one=one, clip_sample=False, seed=3))
    more.append(dict(steps=8, spacing="leading", eta=0.5, clip_sample=True, clip_sample_range=0.5))
    more.append(dict(steps=8, spacing="leading", eta=0.0, clip_sample=True, clip_sample_range=0.5))
    sampler("ddim", DDIMScheduler, None, every, more)


def schedules():
    """Alphas-bar of noise schedules, float32, with the configuration of each beside it."""
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
    """What each scheduler class takes a missing key to be: read from the source, as some need packages to be imported."""
    keys = ["num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type", "steps_offset"]
    keys += ["set_alpha_to_one", "clip_sample", "clip_sample_range", "rescale_betas_zero_snr"]
    folder = Path(inspect.getfile(DDIMScheduler)).parent
    classes = (HERE / "../../src/config.rs").resolve().read_text()
    rows = []
    for path in sorted(folder.glob("scheduling_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and f'class("{node.name}",' in classes:
                init = next(f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__")
                names = [a.arg for a in init.args.args][-len(init.args.defaults) :]
                values = dict(zip(names, init.args.defaults))
                row = {k: ast.literal_eval(values[k]) for k in keys if k in values}
                rows.append({"_class_name": node.name, **row})
    write("defaults.json", {}, {"classes": rows})


def randn():
    """torch's CPU randn: two draws in a row for every small count, then the long ones and the mixed ones."""
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
    schedules()
    defaults()
    randn()
    samplers()
    for path in HERE.glob("*.safetensors"):
        path.chmod(0o644)
