"""Writes shortcuts.json: forecasts of Spectrum and decisions of SADA, by their authors' code.

    git clone https://github.com/hanjq17/Spectrum             # d9923d3
    git clone https://github.com/Ting-Justin-Jiang/sada-icml  # bbbadce
    pip install diffusers==0.42.1 torch==2.15.0 && python shortcuts.py Spectrum sada-icml

Spectrum's forecasters and SADA's scheduler are the authors' code, in float32. Spectrum's rule for
computed steps is written inside of its forward functions, so that `computed` repeats it here.
"""

import importlib.util
import json
import sys
import types
from pathlib import Path

import diffusers
import torch
from diffusers import DPMSolverMultistepScheduler

VERSIONS = {"diffusers": diffusers.__version__, "torch": torch.__version__.split("+")[0]}
assert VERSIONS == {"diffusers": "0.42.1", "torch": "2.15.0"}, VERSIONS

STEPS = 50
SIZE = 6


def module(path):
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def values(tensor):
    return tensor.to(torch.float32).flatten().tolist()


def computed(warm_up, window, growth):
    """Returns the computed steps."""
    steps, skipped = [], 0
    for step in range(STEPS):
        actual = True
        if step >= warm_up:
            actual = (skipped + 1) % int(window) == 0
            if actual:
                window += growth
        skipped = 0 if actual else skipped + 1
        if actual:
            steps.append(step)
    return steps


def toy(t, x):
    """Returns the output of a model of noise."""
    places = torch.arange(x.numel(), dtype=torch.float32)
    return 0.8 * x + 0.3 * torch.sin(3 * x + t / 300 + places)


def spectrum(folder):
    basis = module(Path(folder) / "src/utils/basis_utils.py")
    # The models there run in bfloat16.
    basis.DTYPE = torch.float32
    cases = []
    for degree, ridge, share in [(4, 0.1, 1.0), (4, 0.1, 0.5), (2, 1.0, 0.0), (5, 0.1, 0.8)]:
        warm_up, window, growth = (5, 2, 0.75) if share == 1.0 else (4, 2, 0.25)
        on = computed(warm_up, window, growth)
        chebyshev = basis.ChebyshevForecaster(M=degree, K=100, lam=ridge)
        forecaster = basis.Spectrum(chebyshev, taylor_order=1, w=share)
        generator = torch.Generator().manual_seed(degree)
        x = torch.randn(SIZE, generator=generator)
        outputs = []
        for step in range(STEPS):
            if step in on:
                output = toy(999 - 20 * step, x)
                forecaster.update(torch.tensor(float(step)), output)
            else:
                output = forecaster.predict(float(step)).flatten()
            outputs.append(values(output))
            x = x - 0.05 * output
        cases.append(
            {
                "options": {
                    "warm_up": warm_up, "window": window, "growth": growth, "last": 0,
                    "degree": degree, "ridge": ridge, "fit": share,
                },
                "computed": on,
                "outputs": outputs,
            }
        )
    return cases


def sada(folder):
    solver = module(Path(folder) / "sada/solver.py")
    cases = []
    for prediction, most in [("epsilon", 4), ("epsilon", 2), ("v_prediction", 4)]:
        scheduler = DPMSolverMultistepScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
            prediction_type=prediction,
        )
        scheduler.set_timesteps(STEPS)
        scheduler.__class__ = solver.patch_solver(DPMSolverMultistepScheduler)
        arguments = {"lagrange_term": 0, "max_interval": most, "acc_range": (10, 47), "max_fix": 5120}
        bus = scheduler._cache_bus = types.SimpleNamespace(
            prev_epsilon_guided=[None, None], prev_f=[None, None], pred_m_m_1=None,
            skip_this_step=False, cons_skip=0, rel_momentum_list=[], skipping_path=[],
            temporal_score=None, _tome_info={"args": arguments},
        )
        # Four axes, as the scheduler takes means over channels.
        x = torch.randn(1, 1, 2, SIZE // 2, generator=torch.Generator().manual_seed(1))
        steps, output = [], None
        for timestep in scheduler.timesteps:
            skipped = bus.skip_this_step
            if not skipped:
                output = toy(float(timestep), x.flatten()).reshape(x.shape)
            index = scheduler.step_index or 0
            steps.append(
                {
                    "timestep": float(timestep), "sigma": float(scheduler.sigmas[index]),
                    "x": values(x), "output": values(output), "skipped": skipped,
                    "denoised": values(bus.pred_m_m_1) if skipped else None,
                }
            )
            x = scheduler.step(output, timestep, x).prev_sample
        assert 0 < sum(step["skipped"] for step in steps) < STEPS - 10
        cases.append({"prediction": prediction, "most": most, "steps": steps})
    return cases


spectrum_folder, sada_folder = sys.argv[1:]
golden = {"versions": VERSIONS, "spectrum": spectrum(spectrum_folder), "sada": sada(sada_folder)}
Path(__file__).with_suffix(".json").write_text(json.dumps(golden) + "\n")
