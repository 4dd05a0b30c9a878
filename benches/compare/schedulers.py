"""Compares a step of this project's samplers with `step` of diffusers' classes, on the CPU.

    pip install -r requirements.txt
    python schedulers.py [--json FILE] [--quick]

Runs `cargo bench -p benches --bench schedulers`, and then diffusers' classes in the same sitting.
Both make 20 steps over latents of 4 × 64 × 64 and 4 × 128 × 128 on a model that costs nothing, with
one thread.

This project's time is the median of the steps after the eighth one, when a run has its buffers. Of
diffusers only `step` is measured, without `scale_model_input` and the timesteps, and the time is
the least median of several runs. A step of Heun and of DPM2 includes both of its calls.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

STEPS = 20
SIDES = (64, 128)
WANTED = 20  # expected ratio of the times, at a side of 64
SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
LATENT = dict(clip_sample=False)
MULTISTEP, SINGLESTEP = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
ABOVE = dict(algorithm_type="dpmsolver", final_sigmas_type="sigma_min")
# This project's sampler, diffusers' class, its keys, and its number of steps per step of ours.
CLASSES = [
    ("euler", "EulerDiscreteScheduler", {}, 1),
    ("euler-a", "EulerAncestralDiscreteScheduler", {}, 1),
    ("heun", "HeunDiscreteScheduler", {}, 2),
    ("dpm2", "KDPM2DiscreteScheduler", {}, 2),
    ("dpm2-a", "KDPM2AncestralDiscreteScheduler", {}, 2),
    ("lms", "LMSDiscreteScheduler", {}, 1),
    ("ddim", "DDIMScheduler", LATENT, 1),
    ("ddpm", "DDPMScheduler", LATENT, 1),
    ("pndm", "PNDMScheduler", {}, 1),
    ("plms", "PNDMScheduler", dict(skip_prk_steps=True), 1),
    ("deis", "DEISMultistepScheduler", {}, 1),
    ("dpm-solver-2m", MULTISTEP, ABOVE, 1),
    ("dpm-solver-2s", SINGLESTEP, ABOVE, 1),
    ("dpmpp-2m", MULTISTEP, {}, 1),
    ("dpmpp-3m", MULTISTEP, dict(solver_order=3), 1),
    ("dpmpp-2s", SINGLESTEP, {}, 1),
    ("dpmpp-3s", SINGLESTEP, dict(solver_order=3), 1),
    ("dpmpp-2m-sde", MULTISTEP, dict(algorithm_type="sde-dpmsolver++"), 1),
    ("unipc", "UniPCMultistepScheduler", {}, 1),
    ("sa-solver", "SASolverScheduler", {}, 1),
    ("lcm", "LCMScheduler", LATENT, 1),
    ("tcd", "TCDScheduler", LATENT, 1),
]


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", type=Path, metavar="FILE")
    arguments.add_argument("--quick", action="store_true", help="measure this project with criterion's --quick")
    arguments = arguments.parse_args()
    root = Path(__file__).parents[2]
    command = ["cargo", "bench", "-p", "benches", "--bench", "schedulers", "--", "step-"] + ["--quick"] * arguments.quick
    subprocess.run(command, cwd=root, check=True, stdout=sys.stderr)

    import torch

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    target = Path(os.environ.get("CARGO_TARGET_DIR", root / "target"))
    rows = []
    for side in SIDES:
        for ours, name, keys, calls in CLASSES:
            folder = target / "criterion" / f"step-4x{side}x{side}" / ours
            estimates = json.loads((folder / "new" / "estimates.json").read_text())
            mine = estimates["median"]["point_estimate"] / 1000
            theirs = diffusers_step(name, keys, side) * calls
            rows.append(dict(sampler=ours, side=side, ours_us=mine, diffusers_us=theirs, ratio=theirs / mine))
    print(f"{'a step, µs':20}{'latents':>12}{'ours':>10}{'diffusers':>12}{'times as fast':>16}")
    for row in rows:
        size = f"4x{row['side']}x{row['side']}"
        print(f"{row['sampler']:20}{size:>12}{row['ours_us']:10.2f}{row['diffusers_us']:12.1f}{row['ratio']:16.1f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    slow = [row["sampler"] for row in rows if row["side"] == SIDES[0] and row["ratio"] < WANTED]
    if slow:
        print(f"less than {WANTED} times as fast at {SIDES[0]}: {', '.join(slow)}")
    if "euler" in slow:
        sys.exit(1)


def diffusers_step(name, keys, side):
    """Returns the time of a step in microseconds."""
    import diffusers
    import torch

    medians = []
    for _ in range(5):
        scheduler = getattr(diffusers, name).from_config({**SD, **keys})
        scheduler.set_timesteps(STEPS)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, 4, side, side, generator=generator) * scheduler.init_noise_sigma
        output, took = torch.randn(1, 4, side, side, generator=generator), []
        for t in scheduler.timesteps:
            # Some classes need this call, and others warn without it.
            scheduler.scale_model_input(x, t)
            started = time.perf_counter()
            x = scheduler.step(output, t, x, return_dict=False)[0]
            took.append(time.perf_counter() - started)
        medians.append(statistics.median(took))
    return min(medians) * 1e6


if __name__ == "__main__":
    main()
