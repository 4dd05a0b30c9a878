"""Ladders in float64, straight from the papers: the noise levels of a run and their timesteps.

Every ladder returns `(sigmas, timesteps)`. The sigmas are N rungs, noisiest first, followed by the
level at which the run ends, which is 0 unless stated otherwise. The timesteps belong to the N
rungs. N is the requested number of steps, except where a docstring says that the reference has
another number.

    pip install -r requirements.txt
    pip install --no-deps k-diffusion==0.1.1.post1
    python ladders.py values                                writes ladders.json for the Rust tests
    python ladders.py check [--k-diffusion sampling.py]     compares with the reference implementations

`check` is for diffusers 0.42.1, torch 2.15.0, numpy 2.4.6, scipy 1.17.1 and k-diffusion
0.1.1.post1. It needs k-diffusion's `sampling.py` and the `external.py` next to it, from the
installed package or from the given file. The formulas of WebUI 1.10.1 and ComfyUI 0.3.64 are given
under their names below. None of their code is here.

Sigmas are in the variance-exploding scaling (x = clean + sigma * noise). For flow models, x = (1 -
sigma) * clean + sigma * noise.
"""

import json
import math
from pathlib import Path

import numpy as np

# ---------------------------------------------------------------------------------------------------------------------
# Noise schedules


def betas(kind, count, start=0.00085, end=0.012):
    """Returns the betas of `count` training timesteps. `kind` is diffusers' name."""
    if kind == "linear":
        return np.linspace(start, end, count)
    if kind == "scaled_linear":
        return np.linspace(start**0.5, end**0.5, count) ** 2
    if kind == "sigmoid":  # GeoDiff
        return (end - start) / (1 + np.exp(-np.linspace(-6, 6, count))) + start
    t = np.arange(count + 1) / count
    if kind == "squaredcos_cap_v2":  # arXiv 2102.09672, equation 17
        bar = np.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    elif kind == "exp":
        bar = np.exp(-12 * t)
    elif kind == "laplace":  # diffusers' reading of arXiv 2407.03297: mu 0, b 0.5, and the root of what the paper has
        log_snr = -0.5 * np.sign(0.5 - t) * np.log(1 - 2 * np.abs(0.5 - t) + 1e-6)
        bar = np.sqrt(np.exp(log_snr) / (1 + np.exp(log_snr)))
    else:
        raise ValueError(kind)
    return np.minimum(1 - bar[1:] / bar[:-1], 0.999)


def alpha_bars(betas, zero_snr=False, last=2.0**-24):
    """Returns the running product of 1 - beta. `zero_snr`: algorithm 1 of arXiv 2305.08891, with
    `last` in place of the final 0."""
    bars = np.cumprod(1 - np.asarray(betas, dtype=np.float64))
    if zero_snr:
        roots = np.sqrt(bars)
        bars = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
        bars[-1] = last
    return bars


class Schedule:
    """The sigma of every training timestep, rising, with the two ways to interpolate between
    them."""

    def __init__(self, bars):
        # Alpha-bars in float32 give float32 sigmas and logarithms, as in diffusers. It matters
        # where a timestep is truncated.
        bars = np.asarray(bars)
        sigmas = ((1 - bars) / bars) ** 0.5
        self.sigmas, self.logs = sigmas.astype(np.float64), np.log(sigmas).astype(np.float64)
        self.count = len(self.sigmas)
        self.low, self.high = self.sigmas[0], self.sigmas[-1]

    def linear(self, t):
        """Returns sigma at a timestep, linear in sigma: diffusers."""
        return np.interp(t, np.arange(self.count), self.sigmas)

    def loglinear(self, t):
        """Returns sigma at a timestep, linear in log sigma: k-diffusion, WebUI and ComfyUI."""
        return np.exp(np.interp(t, np.arange(self.count), self.logs))

    def timestep(self, sigma):
        """Returns the timestep of a sigma, linear in log sigma, clamped to 0 and T - 1: diffusers
        and k-diffusion."""
        return np.interp(np.log(np.maximum(sigma, 1e-10)), self.logs, np.arange(self.count))

    def ladder(self, sigmas, last=0.0, rounding=None):
        """Returns a ladder of sigmas with timesteps by inversion."""
        t = self.timestep(np.asarray(sigmas))
        return np.append(sigmas, last), {None: t, "round": np.round(t), "trunc": np.trunc(t)}[rounding]


# ---------------------------------------------------------------------------------------------------------------------
# Ladders of timesteps


def spacing(kind, steps, count=1000, offset=0, one_more=False, whole=False, top=None):
    """Timesteps at even distances: table 2 of arXiv 2305.08891, with the counting of diffusers'
    classes.

    `one_more`: N + 1 points of which the cleanest is dropped (the DPM-Solver family), rather than
    N. `whole`: linspace is rounded half to even. `top`: stay below the timesteps that
    `lambda_min_clipped` cuts off. Trailing may have N + 1 points.
    """
    top, points = count if top is None else top, steps + one_more
    if kind == "linspace":
        t = np.linspace(0, top - 1, points)[::-1][:steps]
        return np.round(t) if whole else t
    if kind == "leading":
        return np.arange(points, dtype=float)[::-1][:steps] * (top // points) + offset
    if kind == "trailing":
        return np.round(np.arange(top, 0, -count / steps)) - 1
    raise ValueError(kind)


def spaced(schedule, t, last=0.0):
    """diffusers: sigmas are interpolated linearly between timesteps."""
    return np.append(schedule.linear(t), last), t


def normal(schedule, steps):
    """k-diffusion's `get_sigmas(n)`, WebUI's Automatic, Uniform and Normal, and ComfyUI's
    normal."""
    t = np.linspace(schedule.count - 1, 0, steps)
    return np.append(schedule.loglinear(t), 0), t


def sgm_uniform(schedule, steps):
    """WebUI's SGM Uniform and ComfyUI's sgm_uniform: N + 1 points of which the cleanest is
    dropped."""
    t = np.linspace(schedule.count - 1, 0, steps + 1)[:-1]
    return np.append(schedule.loglinear(t), 0), t


def simple(schedule, steps):
    """WebUI's Simple and ComfyUI's simple: every (T/N)-th trained sigma from the noisy end, rounded
    towards it."""
    t = schedule.count - 1 - np.floor(np.arange(steps) * (schedule.count / steps))
    return np.append(schedule.sigmas[t.astype(int)], 0), t


def ddim_uniform(schedule, steps):
    """WebUI's DDIM and ComfyUI's ddim_uniform: timesteps 1, 1 + T//N, …. There are ceil((T - 1) /
    (T//N)) of them, which is not always N."""
    t = np.arange(1, schedule.count, max(schedule.count // steps, 1))[::-1]
    return np.append(schedule.sigmas[t], 0), t.astype(float)


def turbo(schedule, steps):
    """SD Turbo: the noisiest N of the ten timesteps 999, 899, … 99 (ComfyUI's
    SDTurboScheduler)."""
    t = np.arange(10, 0, -1)[:steps] * 100 - 1
    return np.append(schedule.loglinear(t), 0), t.astype(float)


def lcm(steps, origin=50, count=1000, strength=1.0):
    """LCM and TCD in diffusers: N of the `origin` timesteps that the model was distilled on,
    rounded towards noise."""
    trained = np.arange(int(origin * strength), 0, -1) * (count // origin) - 1
    return trained[np.floor(np.linspace(0, len(trained), steps, endpoint=False)).astype(int)].astype(float)


def beta_timesteps(schedule, steps, alpha=0.6, beta=0.6):
    """arXiv 2407.12173 as in ComfyUI's beta: quantiles of Beta(alpha, beta) over timesteps. Equal
    neighbours are one rung."""
    p = 1 - np.arange(steps) / steps
    t = np.round(np.array([beta_quantile(x, alpha, beta) for x in p]) * (schedule.count - 1)).astype(int)
    t = t[np.append(True, np.diff(t) != 0)]
    return np.append(schedule.sigmas[t], 0), t.astype(float)


# ---------------------------------------------------------------------------------------------------------------------
# Ladders of sigmas. Each returns N sigmas from `high` to `low`, both included. A single point is
# `high`.


def karras(steps, low, high, rho=7.0):
    """Equation 5 of arXiv 2206.00364; k-diffusion's `get_sigmas_karras`."""
    return (high ** (1 / rho) + np.linspace(0, 1, steps) * (low ** (1 / rho) - high ** (1 / rho))) ** rho


def exponential(steps, low, high):
    """Even in log sigma; k-diffusion's `get_sigmas_exponential`, diffusers'
    `use_exponential_sigmas` and `use_lu_lambdas`."""
    return np.exp(np.linspace(math.log(high), math.log(low), steps))


def polyexponential(steps, low, high, rho=1.0):
    """A power of the ramp in log sigma; k-diffusion's `get_sigmas_polyexponential`."""
    return np.exp(np.linspace(1, 0, steps) ** rho * math.log(high / low) + math.log(low))


def beta_sigmas(steps, low, high, alpha=0.6, beta=0.6):
    """Quantiles of Beta(alpha, beta) over sigma itself: diffusers' `use_beta_sigmas` and WebUI's
    Beta."""
    return np.array([low + beta_quantile(p, alpha, beta) * (high - low) for p in 1 - np.linspace(0, 1, steps)])


def kl_optimal(steps, low, high):
    """Section 3 of arXiv 2404.14507: the best ladder for Gaussian data is even in arctan sigma.

    ComfyUI's kl_optimal is `kl_optimal(n, …)` followed by a 0. WebUI's KL Optimal is
    `kl_optimal(n + 1, …)` without a 0.
    """
    return np.tan(np.linspace(math.atan(high), math.atan(low), steps))


def laplace(steps, low, high, mu=0.0, beta=0.5):
    """Quantiles of a Laplace distribution of log sigma, clamped to the range (arXiv 2407.03297;
    ComfyUI's LaplaceScheduler)."""
    x = 0.5 - np.linspace(0, 1, steps)
    return np.clip(np.exp(mu - beta * np.sign(x) * np.log(1 - 2 * np.abs(x) + 1e-5)), low, high)


def vp(steps, beta_d=19.9, beta_min=0.1, eps=1e-3):
    """The continuous VP schedule of arXiv 2011.13456 in the form of arXiv 2206.00364; k-diffusion's
    `get_sigmas_vp`."""
    t = np.linspace(1, eps, steps)
    return np.sqrt(np.expm1(beta_d * t**2 / 2 + beta_min * t))


def linear_quadratic(steps, threshold=0.025, linear=None):
    """Mochi's ladder of flow sigmas, with N + 1 levels.

    It has `linear` (N // 2) equal steps that go down by `threshold` in all, then a parabola that
    leaves in the same direction and reaches 0. ComfyUI multiplies by the model's largest sigma.
    """
    linear = steps // 2 if linear is None else linear
    if steps == 1:
        return np.array([1.0, 0.0])
    rest, slope = steps - linear, threshold / linear
    i = np.arange(steps + 1)
    j = np.maximum(i - linear, 0)
    return 1 - (i * slope + (1 - steps * slope) * (j / rest) ** 2)


# ---------------------------------------------------------------------------------------------------------------------
# Published tables

# arXiv 2404.14507 and its how-to page: eleven levels for ten steps. The last is replaced by 0 when
# sampling.
ALIGN_YOUR_STEPS = {
    "sd15": [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029],
    "sdxl": [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029],
    "svd": [700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002],
}
# The same with ComfyUI's digits. They are sigmas of whole timesteps: 999, 850, … on the how-to
# page.
ALIGN_YOUR_STEPS_LONG = {
    "sd15": [
        14.6146412293, 6.4745760956, 3.8636745985, 2.6946151520, 1.8841921177, 1.3943805092,
        0.9642583904, 0.6523686016, 0.3977456272, 0.1515232662, 0.0291671582,
    ],
    "sdxl": [
        14.6146412293, 6.3184485287, 3.7681790315, 2.1811480769, 1.3405244945, 0.8620721141,
        0.5550693289, 0.3798540708, 0.2332364134, 0.1114188177, 0.0291671582,
    ],
    "svd": ALIGN_YOUR_STEPS["svd"],
}  # fmt: skip


def loglinear(table, levels):
    """Reads a table of falling levels at `levels` even distances, linearly in their logarithms."""
    at = np.linspace(0, len(table) - 1, levels)
    return np.exp(np.interp(at, np.arange(len(table)), np.log(table)))


def align_your_steps(steps, table):
    """N + 1 levels, the last set to 0: the how-to page and ComfyUI."""
    return np.append(loglinear(table, steps + 1)[:-1], 0)


def align_your_steps_webui(steps, table):
    """N levels followed by a 0: WebUI 1.10.1, with the short table."""
    return np.append(loglinear(table, steps), 0)


def gits_levels():
    """Maps a coefficient ("1.20") to the rungs for N = 2 … 20, as places k on the teacher's grid
    (timestep k * (T - 1) / 100)."""
    return json.loads((Path(__file__).parent / "gits.json").read_text())["levels"]


def gits(schedule, steps, coefficient=1.20):
    """arXiv 2405.11326: places found by dynamic programming for SD 1.5. Beyond 20 steps, the
    longest row is read log-linearly."""
    rows = gits_levels()[f"{coefficient:.2f}"]
    row = rows[min(steps, 20) - 2]
    sigmas = schedule.loglinear(np.array(row) * ((schedule.count - 1) / 100))
    return np.append((sigmas if steps <= 20 else loglinear(sigmas, steps + 1))[:-1], 0)


# ---------------------------------------------------------------------------------------------------------------------
# Flow models


def shift(sigma, factor):
    """Equation 23 of arXiv 2403.03206: the resolution shift of flow sigmas. Factor 1 changes
    nothing, and SD 3 has 3."""
    return factor * sigma / (1 + (factor - 1) * sigma)


def dynamic_factor(mu, kind="exponential"):
    """diffusers' time_shift with sigma 1: `exponential` is `shift` by e^mu, and `linear` is `shift`
    by mu."""
    return math.exp(mu) if kind == "exponential" else mu


def stretch(sigmas, terminal):
    """`shift_terminal`: scales 1 - sigma so that the last rung is `terminal`."""
    return 1 - (1 - sigmas) * (1 - terminal) / (1 - sigmas[-1])


def flow_even(steps, factor=1.0, count=1000):
    """diffusers' FlowMatchEuler and FlowMatchHeun without dynamic shift.

    The clean end of the line is shifted before the line is drawn, and the line is shifted again.
    The last rung is therefore the *twice* shifted 1/T.
    """
    return shift(np.linspace(1, shift(1 / count, factor), steps), factor)


def flow_pipeline(steps, factor):
    """The pipelines of Flux and SD 3 with dynamic shift: 1, 1 - 1/N, … 1/N, shifted once
    (`factor` = dynamic_factor(mu))."""
    return shift(np.linspace(1, 1 / steps, steps), factor)


def flow_dynamic(steps, factor, count=1000):
    """FlowMatchEuler with dynamic shift and no given sigmas: 1 … 1/T, shifted once."""
    return shift(np.linspace(1, 1 / count, steps), factor)


def flow_dpm(steps, factor=1.0, count=1000):
    """`use_flow_sigmas` of DPM-Solver, DEIS and SA-Solver: (1 - 1/T) * (N … 1) / N, shifted.

    It follows diffusers' order of operations, because the timesteps are truncated afterwards.
    """
    return shift(1 - np.linspace(1, 1 / count, steps + 1), factor)[:0:-1]


def flow_unipc(steps, factor=1.0, count=1000):
    """`use_flow_sigmas` of UniPC: N + 1 points from 1 to 1/T of which the cleanest is dropped,
    shifted. 1 becomes 1 - 1e-6."""
    sigmas = shift(np.linspace(1, 1 / count, steps + 1)[:-1], factor)
    sigmas[0] -= 1e-6
    return sigmas


# ---------------------------------------------------------------------------------------------------------------------
# Beta distribution


def beta_quantile(p, a, b):
    """Returns the x below which Beta(a, b) has mass p, without the gamma function.

    B(x; a, b) = x^a * sum over n of (1 - b)_n / n! * x^n / (a + n) is the mass up to x, not
    normalised. For x up to 1/2, its terms fall by half or more. The whole mass is B(1/2; a, b) +
    B(1/2; b, a). On the clean half, z = x^a is found by bisection, because B is nearly linear in z.
    The other half is the mirror image.
    """
    if p <= 0 or p >= 1:
        return float(p >= 1)

    def lower(x, a, b):
        total, term = 0.0, 1.0
        for n in range(200):
            total += term / (a + n)
            term *= x * (n + 1 - b) / (n + 1)
            if abs(term) < 1e-17 * total:
                break
        return x**a * total

    left, right = lower(0.5, a, b), lower(0.5, b, a)
    if p * (left + right) == left:
        return 0.5  # exactly, as 0.5 * 999 is a tie when it is rounded to a timestep
    if p * (left + right) > left:
        return 1 - beta_quantile_half((1 - p) * (left + right), b, a, lower)
    return beta_quantile_half(p * (left + right), a, b, lower)


def beta_quantile_half(mass, a, b, lower):
    below, above = 0.0, 0.5**a
    for _ in range(60):
        z = (below + above) / 2
        below, above = (z, above) if lower(z ** (1 / a), a, b) < mass else (below, z)
    return ((below + above) / 2) ** (1 / a)


# ---------------------------------------------------------------------------------------------------------------------
# Comparison with the references

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
COUNTS = [1, 2, 5, 10, 20, 50]


def karras_sigmas_family(schedule, steps, kind, extra, offset):
    """Euler, Heun, LMS, KDPM2 and DPMSolverSDE: N points. Karras and the other shapes cover the
    range of the spacing."""
    t = spacing(kind, steps, schedule.count, offset)
    sigmas = schedule.linear(t)
    if extra is None:
        return np.append(sigmas, 0), t
    # The shapes have N points even where trailing has N + 1.
    return schedule.ladder(extra(steps, sigmas[-1], sigmas[0]))


def dpm_solver_family(schedule, steps, kind, extra, offset, rounding, last, repeats):
    """DPMSolverMultistep, DEIS, UniPC and SASolver: N + 1 points of which the cleanest is dropped.
    The shapes cover the full range.

    `last`: the run ends at the smallest sigma rather than 0. `repeats`: on the shapes, it ends at
    the last rung once more instead.
    """
    if extra is None:
        t = spacing(kind, steps, schedule.count, offset, one_more=True, whole=True)
        return np.append(schedule.linear(t), schedule.low if last else 0), t
    sigmas = extra(steps, schedule.low, schedule.high)
    end = sigmas[-1] if repeats else schedule.low
    return schedule.ladder(sigmas, end if last else 0, rounding)


def check(k_path):
    import diffusers
    import torch
    from scipy import stats

    import suite

    k = suite.load_k_diffusion(k_path)
    external = {"__name__": "k_diffusion.external", "sampling": k, "utils": None}
    code = Path(k.__file__).with_name("external.py").read_text()
    exec(code.replace("from . import sampling, utils", ""), external)
    diffusers.utils.logging.set_verbosity_error()
    worst = {}

    def compare(name, mine, sigmas, timesteps=None):
        def error(a, b):
            a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
            assert a.shape == b.shape, (name, a.shape, b.shape)
            return float(np.max(np.abs(a - b) / np.maximum(np.abs(b), 1e-3)))

        found = (error(mine[0], sigmas), 0.0 if timesteps is None else error(mine[1], timesteps))
        worst[name] = tuple(map(max, found, worst.get(name, (0, 0))))

    ranged = {"use_karras_sigmas": karras, "use_exponential_sigmas": exponential, "use_beta_sigmas": beta_sigmas}
    for name in ["Euler", "Heun", "LMS", "KDPM2", "KDPM2Ancestral", "EulerAncestral", "DPMSolverSDE"]:
        cls = getattr(diffusers, {"DPMSolverSDE": "DPMSolverSDEScheduler"}.get(name, f"{name}DiscreteScheduler"))
        for kind in ["leading", "linspace", "trailing"]:
            for key, extra in [(None, None), *ranged.items()]:
                if key and name == "EulerAncestral":
                    continue
                for steps in COUNTS:
                    if name == "KDPM2" or name == "KDPM2Ancestral":
                        if steps == 1:
                            continue  # its log of the final 0 leaves no timestep to compare
                    s = cls(**SD, steps_offset=1, timestep_spacing=kind, **({key: True} if key else {}))
                    s.set_timesteps(steps)
                    sigmas, t = s.sigmas.double().numpy(), s.timesteps.double().numpy()
                    if name in ("Heun", "DPMSolverSDE"):
                        sigmas = np.concatenate([sigmas[:1], sigmas[1:-1:2], sigmas[-1:]])
                        t = np.concatenate([t[:1], t[2::2]]) if name == "DPMSolverSDE" else np.append(t[:1], t[1::2])
                    if name.startswith("KDPM2"):
                        sigmas, t = np.append(sigmas[:1], sigmas[1:-1:2]), np.append(t[:1], t[2::2])
                    mine = karras_sigmas_family(Schedule(s.alphas_cumprod.numpy()), steps, kind, extra, 1)
                    if name.startswith("KDPM2") and key == "use_karras_sigmas":
                        mine = mine[0], np.round(mine[1])
                    compare(f"{cls.__name__} {key or kind}", mine, sigmas, t)
    for name in ["DPMSolverMultistep", "DEISMultistep", "UniPCMultistep", "SASolver"]:
        cls = getattr(diffusers, f"{name}Scheduler")
        pairs = [(None, None), *ranged.items()]
        pairs += [("use_lu_lambdas", exponential)] if name == "DPMSolverMultistep" else []
        for kind in ["leading", "linspace", "trailing"]:
            for key, extra in pairs:
                for final in ["zero", "sigma_min"] if name[:3] in ("DPM", "Uni") else [None]:
                    for steps in COUNTS:
                        s = cls(**SD, steps_offset=1, timestep_spacing=kind, **({key: True} if key else {}),
                                **({"final_sigmas_type": final} if final else {}))  # fmt: skip
                        s.set_timesteps(steps)
                        rounding = "round" if key in ("use_karras_sigmas", "use_lu_lambdas") else "trunc"
                        schedule, repeats = Schedule(s.alphas_cumprod.numpy()), name != "DPMSolverMultistep"
                        ends = final != "zero", repeats
                        mine = dpm_solver_family(schedule, steps, kind, extra, 1, rounding, *ends)
                        compare(f"{name} {key or kind}", mine, s.sigmas, s.timesteps)
    for steps in COUNTS:
        for kind in ["leading", "linspace", "trailing"]:
            for cls in [diffusers.DDIMScheduler, diffusers.DDPMScheduler, diffusers.PNDMScheduler]:
                keys = {"skip_prk_steps": True} if cls is diffusers.PNDMScheduler else {}
                s = cls(**SD, steps_offset=1, timestep_spacing=kind, **keys)
                s.set_timesteps(steps)
                t = spacing(kind, steps, offset=1, whole=True)
                if keys:  # the last but one is visited twice (from N = 2 on)
                    t = np.concatenate([t[:1], t[1:2], t[1:]]) if steps > 1 else t
                compare(f"{cls.__name__} {kind}", (t, t), s.timesteps, s.timesteps)
        if steps <= 50:
            for cls in [diffusers.LCMScheduler, diffusers.TCDScheduler]:
                s = cls()
                s.set_timesteps(steps)
                compare(f"{cls.__name__}", (lcm(steps),) * 2, s.timesteps, s.timesteps)
        s = diffusers.DPMSolverSinglestepScheduler(**SD)
        s.set_timesteps(steps)
        t = spacing("linspace", steps, one_more=True, whole=True)
        compare("DPMSolverSinglestep", spaced(Schedule(s.alphas_cumprod.numpy()), t), s.sigmas, s.timesteps)
        for factor in [1.0, 3.0]:
            for cls in [diffusers.FlowMatchEulerDiscreteScheduler, diffusers.FlowMatchHeunDiscreteScheduler]:
                s = cls(shift=factor)
                s.set_timesteps(steps)
                sigmas, t = s.sigmas.numpy(), s.timesteps.numpy()
                if "Heun" in cls.__name__:
                    sigmas, t = np.concatenate([sigmas[:1], sigmas[1:-1:2], sigmas[-1:]]), np.append(t[:1], t[1::2])
                mine = flow_even(steps, factor)
                compare(cls.__name__, (np.append(mine, 0), mine * 1000), sigmas, t)
            s = diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True, flow_shift=factor)
            s.set_timesteps(steps)
            mine = flow_dpm(steps, factor)
            compare("DPMSolverMultistep flow", (np.append(mine, 0), np.trunc(mine * 1000)), s.sigmas, s.timesteps)
            s = diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=factor)
            s.set_timesteps(steps)
            mine = flow_unipc(steps, factor)
            compare("UniPC flow", (np.append(mine, 0), np.trunc(mine * 1000)), s.sigmas, s.timesteps)
        for mu, kind in [(0.9, "exponential"), (1.1, "linear")]:
            s = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
            s.set_timesteps(steps, mu=mu)
            mine = flow_dynamic(steps, dynamic_factor(mu, kind))
            compare("FlowMatchEuler dynamic", (np.append(mine, 0), mine * 1000), s.sigmas, s.timesteps)
            s.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=mu)
            mine = flow_pipeline(steps, dynamic_factor(mu, kind))
            compare("FlowMatchEuler sigmas given", (np.append(mine, 0), mine * 1000), s.sigmas, s.timesteps)
            if steps > 1:
                s = diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0, shift_terminal=0.1)
                s.set_timesteps(steps)
                mine = stretch(flow_even(steps, 2.0), 0.1)
                compare("FlowMatchEuler terminal", (np.append(mine, 0), mine * 1000), s.sigmas, s.timesteps)
        for kind, extra in [("karras", karras), ("exponential", exponential)]:
            for cls in [diffusers.EDMEulerScheduler, diffusers.EDMDPMSolverMultistepScheduler]:
                s = cls(sigma_schedule=kind)
                s.set_timesteps(steps)
                mine = extra(steps, 0.002, 80.0)
                if steps == 1 and kind == "exponential":
                    mine = np.array([0.002])  # the line is drawn from the clean end, so one point is the clean one
                compare(f"{cls.__name__} {kind}", (np.append(mine, 0), np.log(mine) / 4), s.sigmas, s.timesteps)
    kinds = {"linear": "Euler", "scaled_linear": "Euler", "squaredcos_cap_v2": "Euler", "exp": "Heun"}
    for kind, name in {**kinds, "sigmoid": "DDPM", "laplace": "DDPM"}.items():
        cls = diffusers.DDPMScheduler if name == "DDPM" else getattr(diffusers, f"{name}DiscreteScheduler")
        for zero in [False, True] if name != "Heun" else [False]:
            s = cls(**{**SD, "beta_schedule": kind}, **({"rescale_betas_zero_snr": True} if zero else {}))
            if zero and name == "DDPM":
                s.alphas_cumprod[-1] = 2**-24  # DDPM, DDIM, LCM and TCD keep the 0
            bars = alpha_bars(betas(kind, 1000), zero)
            compare(f"alpha-bars {kind}{' zero SNR' if zero else ''}", (1 - bars,), 1 - s.alphas_cumprod)
            compare(f"alpha-bars {kind}{' zero SNR' if zero else ''}", (bars,), s.alphas_cumprod)
    worst["beta quantile"] = (max(
        abs(beta_quantile(p, a, b) - stats.beta.ppf(p, a, b))
        for a, b in [(0.6, 0.6), (0.6, 0.5), (1, 1), (0.01, 0.01), (2, 3), (0.3, 1.7), (5, 0.5)]
        for p in np.linspace(0, 1, 101)
    ), 0.0)  # fmt: skip
    bars = torch.from_numpy(np.float32(alpha_bars(betas("scaled_linear", 1000))))
    schedule, low, high = Schedule(bars.numpy()), 0.0292, 14.6146
    denoiser = external["DiscreteSchedule"](((1 - bars) / bars) ** 0.5, quantize=False)
    for n in COUNTS:
        zero = lambda sigmas: (np.append(sigmas, 0),)  # noqa: E731
        compare("k-diffusion karras", zero(karras(n, low, high)), k.get_sigmas_karras(n, low, high))
        compare("k-diffusion exponential", zero(exponential(n, low, high)), k.get_sigmas_exponential(n, low, high))
        compare("k-diffusion polyexponential", zero(polyexponential(n, low, high, 2.0)),
                k.get_sigmas_polyexponential(n, low, high, 2.0))  # fmt: skip
        compare("k-diffusion vp", zero(vp(n)), k.get_sigmas_vp(n))
        compare("k-diffusion get_sigmas", normal(schedule, n), denoiser.get_sigmas(n))
    for name, (sigma, t) in worst.items():
        print(f"{name:55} sigmas {sigma:.1e}  timesteps {t:.1e}")


def values():
    """Writes ladders.json: N = 1, 2, 10, 20 on SD's schedule, in float64 throughout, alpha-bars
    too."""
    s = Schedule(alpha_bars(betas("scaled_linear", 1000)))
    low, high = s.low, s.high
    flow = lambda sigmas: (np.append(sigmas, 0), sigmas * 1000)  # noqa: E731
    ladders = {}
    for kind in ["leading", "linspace", "trailing"]:
        ladders[f"{kind} N"] = lambda n, kind=kind: spaced(s, spacing(kind, n, offset=1))
        ladders[f"{kind} N+1"] = lambda n, kind=kind: spaced(s, spacing(kind, n, 1000, 1, True, True))
        ladders[f"karras over {kind}"] = lambda n, kind=kind: karras_sigmas_family(s, n, kind, karras, 1)
    ladders |= {
        "linspace N whole": lambda n: spaced(s, spacing("linspace", n, whole=True)),
        "karras": lambda n: s.ladder(karras(n, low, high)),
        "karras rho 5": lambda n: s.ladder(karras(n, low, high, 5.0)),
        "karras webui old": lambda n: s.ladder(karras(n, 0.1, 10.0)),
        "exponential": lambda n: s.ladder(exponential(n, low, high)),
        "polyexponential rho 1": lambda n: s.ladder(polyexponential(n, low, high)),
        "polyexponential rho 2": lambda n: s.ladder(polyexponential(n, low, high, 2.0)),
        "vp": lambda n: s.ladder(vp(n)),
        "beta": lambda n: s.ladder(beta_sigmas(n, low, high)),
        "beta 0.5 0.7": lambda n: s.ladder(beta_sigmas(n, low, high, 0.5, 0.7)),
        "beta-timesteps": lambda n: beta_timesteps(s, n),
        "kl-optimal": lambda n: s.ladder(kl_optimal(n, low, high)),
        "kl-optimal webui": lambda n: s.ladder(kl_optimal(n + 1, low, high)[:-1], low),
        "laplace": lambda n: s.ladder(laplace(n, low, high)),
        "linear-quadratic": lambda n: s.ladder(linear_quadratic(n)[:-1] * high),
        "linear-quadratic flow": lambda n: flow(linear_quadratic(n)[:-1]),
        "normal": lambda n: normal(s, n),
        "sgm-uniform": lambda n: sgm_uniform(s, n),
        "simple": lambda n: simple(s, n),
        "ddim-uniform": lambda n: ddim_uniform(s, n),
        "turbo": lambda n: turbo(s, n) if n <= 10 else None,
        "lcm": lambda n: spaced(s, lcm(n)),
        "gits": lambda n: s.ladder(gits(s, n)[:-1]) if n > 1 else None,
        "gits 0.80": lambda n: s.ladder(gits(s, n, 0.80)[:-1]) if n > 1 else None,
        "flow N shift 1": lambda n: flow(flow_even(n)),
        "flow N shift 3": lambda n: flow(flow_even(n, 3.0)),
        "flow pipeline mu 0.9": lambda n: flow(flow_pipeline(n, math.exp(0.9))),
        "flow dynamic mu 0.9": lambda n: flow(flow_dynamic(n, math.exp(0.9))),
        "flow dpm shift 3": lambda n: flow(flow_dpm(n, 3.0)),
        "flow unipc shift 3": lambda n: flow(flow_unipc(n, 3.0)),
    }
    for table in ALIGN_YOUR_STEPS:
        long, short = ALIGN_YOUR_STEPS_LONG[table], ALIGN_YOUR_STEPS[table]
        ladders[f"align-your-steps {table}"] = lambda n, t=long: s.ladder(align_your_steps(n, t)[:-1])
        if table != "svd":
            ladders[f"align-your-steps webui {table}"] = lambda n, t=short: s.ladder(align_your_steps_webui(n, t)[:-1])
    digits = lambda numbers: [float(f"{x:.12g}") for x in numbers]  # noqa: E731
    lines = []
    for name, ladder in ladders.items():
        for n in (1, 2, 10, 20):
            found = ladder(n)
            if found is not None:
                row = {"ladder": name, "steps": n, "sigmas": digits(found[0]), "timesteps": digits(found[1])}
                lines.append(json.dumps(row))
    header = {"schedule": SD, "num_train_timesteps": 1000, "steps_offset": 1, "precision": "float64 throughout"}
    path = Path(__file__).parent / "ladders.json"
    path.write_text(json.dumps(header)[:-1] + ', "ladders": [\n' + ",\n".join(lines) + "\n]}\n")
    print(len(lines), "ladders")


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["values", "check"])
    parser.add_argument("--k-diffusion", metavar="FILE", help="k-diffusion's sampling.py")
    arguments = parser.parse_args()
    if arguments.name == "values":
        values()
    else:
        check(arguments.k_diffusion)
