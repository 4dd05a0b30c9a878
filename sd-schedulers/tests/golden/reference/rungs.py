"""The rungs that a sampler visits: a ladder (../ladders.py) with the sampler's counting, rounding
and end.

A ladder is written as in the crate's serde form: a name, or an object with one name and its
options.
"""

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import ladders  # noqa: E402

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
TRAINED = 1000


@dataclass(frozen=True)
class Conventions:
    """How a sampler wants its rungs made.

    `one_more`: N + 1 points of a spacing, of which the cleanest is dropped. `whole`: linspace is
    rounded. `told`: how the model is given timesteps that do not come from a spacing, None
    (unrounded) or "whole" (truncated on exponential and beta ladders and for flow models, and
    rounded on others). `end`: "zero" or "sigma_min". `drop`: a ladder with one more step without
    its cleanest rung. `flow`: the scaling on a flow model.
    """

    one_more: bool = False
    whole: bool = False
    told: str | None = None
    end: str = "zero"
    drop: bool = False
    flow: str = "exploding"


@cache
def schedule():
    """Returns Stable Diffusion's schedule, with alpha-bars in float32 as in diffusers."""
    import torch

    betas = torch.linspace(SD["beta_start"] ** 0.5, SD["beta_end"] ** 0.5, TRAINED, dtype=torch.float32) ** 2
    return ladders.Schedule(torch.cumprod(1.0 - betas, dim=0).numpy())


class Rungs:
    """The N + 1 sigmas in the scaling of the run and the N timesteps, both rounded to float32."""

    def __init__(self, sigmas, timesteps, flow=False, exploding=True):
        self.sigmas = [float(s) for s in np.asarray(sigmas, np.float32)]
        self.timesteps = [float(t) for t in np.asarray(timesteps, np.float32)]
        self.flow, self.exploding = flow, exploding
        self.known = dict(zip(self.sigmas, self.timesteps))

    @property
    def steps(self):
        return len(self.timesteps)

    @property
    def lowest(self):
        """The smallest sigma of the training."""
        if not self.flow:
            return schedule().low
        return 1 / (TRAINED - 1) if self.exploding else 1 / TRAINED

    def timestep(self, sigma):
        """Returns the timestep of a sigma. At a rung's sigma, it is the rung's timestep."""
        rounded = float(np.float32(sigma))
        return self.known[rounded] if rounded in self.known else self.between(sigma)

    def between(self, sigma):
        """Returns the timestep of a sigma, even where a rung has another one."""
        if self.flow:
            return TRAINED * (sigma / (1 + sigma) if self.exploding else sigma)
        return float(schedule().timestep(sigma))

    def trained(self, timestep):
        """Returns the sigma of a whole timestep."""
        if self.flow:
            sigma = min(max(timestep, 1), TRAINED) / TRAINED
            return sigma / (1 - sigma) if self.exploding else sigma
        return float(schedule().sigmas[int(timestep)])


def rungs(ladder, flow, steps, conventions):
    name, options = (ladder, {}) if isinstance(ladder, str) else next(iter(ladder.items()))
    table, count = schedule(), steps + conventions.drop
    spaced = name in ("leading", "linspace", "trailing")
    timesteps = None

    def points(name):
        t = ladders.spacing(name, count, TRAINED, SD["steps_offset"], conventions.one_more, conventions.whole)
        # numpy's single point is the clean end, which the crate does not follow.
        return np.array([TRAINED - 1.0]) if name == "linspace" and len(t) == 1 and not conventions.one_more else t

    if flow:
        assert name == "flow", ladder
        levels, factor = options.get("levels", "shifted-end"), options.get("shift", {"by": 1.0})["by"]
        make = {"shifted-end": ladders.flow_even, "dpm": ladders.flow_dpm, "uni-pc": ladders.flow_unipc}[levels]
        sigmas = make(count, factor)
        timesteps = sigmas * TRAINED
    elif spaced:
        timesteps = points(name)
        sigmas = table.linear(timesteps)
    elif name == "normal":
        timesteps = np.linspace(TRAINED - 1, 0, count)
        sigmas = table.loglinear(timesteps)
    elif name == "lcm":
        timesteps = ladders.lcm(count)
        sigmas = table.linear(timesteps)
    else:
        low, high = table.low, table.high
        if "over" in options:
            ends = table.linear(points(options["over"]))
            low, high = ends[-1], ends[0]
        make = {"karras": ladders.karras, "exponential": ladders.exponential, "beta": ladders.beta_sigmas}[name]
        sigmas = make(count, low, high)
        timesteps = table.timestep(sigmas)

    if conventions.told == "whole" and not spaced:
        timesteps = np.trunc(timesteps) if flow or name in ("exponential", "beta") else np.round(timesteps)
    end = 0.0
    if conventions.end == "sigma_min":
        end = table.low if spaced or name in ("normal", "lcm") else sigmas[-1]
    if conventions.drop and count > 1:
        sigmas, timesteps = sigmas[:-1], timesteps[:-1]
    sigmas = np.append(sigmas, end)
    exploding = flow and conventions.flow == "exploding"
    if exploding:
        # Pure noise would be infinite, so it counts as nearly pure noise.
        highest = 1 - 1 / TRAINED
        if sigmas[1] < 1:
            highest = max(highest, (1 + sigmas[1]) / 2)
        sigmas = np.where(np.float32(sigmas) >= 1, highest, sigmas)
        sigmas = sigmas / (1 - sigmas)
    return Rungs(sigmas, timesteps, flow, exploding)
