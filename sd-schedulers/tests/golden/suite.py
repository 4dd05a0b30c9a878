"""Writes samplers.json and samplers.safetensors: every sampler on the toy model (reference/toy.py),
in float64.

Each sampler of the crate's table runs with each prediction type, on one or two ladders, at 1, 2, 5,
10, 25 and 50 steps. Each option of each sampler runs once, at 5 and 20 steps. The samplers that
k-diffusion has are compared with it, call for call. A run that the sampler cannot make is listed as
refused. `name` is the name of a row of the crate's table, or of a sampler in options.json.
"""

import importlib.util
import inspect
import json
import math
import sys
import types
from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np

from reference import multistep, ode, sde
from reference.rungs import TRAINED, Conventions, rungs
from reference.toy import STEPS, Pair, Toy, compare, start

# The ways in which samplers count, round and end.
EXACT = Conventions()
SLOPE = Conventions(flow="flow")
DROPPED = Conventions(drop=True)
WHOLE = Conventions(whole=True)
TOLD_WHOLE = Conventions(whole=True, told="whole")
DPM = Conventions(one_more=True, whole=True, told="whole")
DPM_ABOVE = replace(DPM, end="sigma_min")

# The ladders of a family for each prediction type. The first is for all samplers of the family.
SHIFTED = {"flow": {"shift": {"by": 3.0}}}
K_LADDERS = {
    "epsilon": ["karras", "leading"],
    "v": ["exponential", "trailing"],
    "sample": ["normal", {"karras": {"over": "linspace"}}],
    "flow": ["flow", SHIFTED],
}
DPM_LADDERS = {
    "epsilon": ["karras", "leading"],
    "v": ["exponential", "trailing"],
    "sample": ["beta", "linspace"],
    "flow": [{"flow": {"levels": "dpm"}}, {"flow": {"levels": "dpm", "shift": {"by": 3.0}}}],
}
UNIPC_LADDERS = DPM_LADDERS | {"flow": [{"flow": {"levels": "uni-pc"}}, {"flow": {"levels": "uni-pc", "shift": {"by": 3.0}}}]}
DDPM_LADDERS = {
    "epsilon": ["leading", "karras"],
    "v": ["trailing", "linspace"],
    "sample": ["linspace", "leading"],
    "flow": ["flow", SHIFTED],
}
LCM_LADDERS = {
    "epsilon": ["lcm", "trailing"],
    "v": ["karras", "lcm"],
    "sample": ["trailing", "leading"],
    "flow": ["flow", SHIFTED],
}
# The ladders of samplers that stay on the training timesteps. A flow model has none.
GRID_LADDERS = {"epsilon": ["leading", "linspace"], "v": ["trailing", "leading"], "sample": ["linspace", "trailing"]}


@dataclass
class Sampler:
    """A sampler of the suite.

    `transcription(run)` returns the path. `main`: it runs on two ladders. `option`: it is not a row
    of the table. `both`: it runs with guidance. `k`: the function of k-diffusion and its options.
    """

    name: str
    transcription: object
    conventions: Conventions = EXACT
    ladders: dict = None
    main: bool = False
    option: bool = False
    both: bool = False
    k: tuple = None
    least: int = 1

    def cases(self):
        """Yields the ladder, the prediction type and the numbers of steps."""
        if self.option:
            prediction, ladder = next((p, family[0]) for p, family in self.ladders.items())
            yield ladder, prediction, (5, 20)
            return
        for prediction, family in self.ladders.items():
            yield family[0], prediction, STEPS
            if self.main:
                # Leave out the longest run, which is a third of the total.
                yield family[1], prediction, STEPS[:-1]


class Run:
    """A sampler on a ladder.

    `states` are the states on reaching each rung after the first, one per reported step.
    """

    def __init__(self, sampler, ladder, prediction, steps):
        self.rungs = rungs(ladder, prediction == "flow", steps, sampler.conventions)
        self.sigmas, self.steps, self.prediction = self.rungs.sigmas, self.rungs.steps, prediction
        model = Pair if sampler.both else Toy
        self.toy = model(prediction, self.rungs.timestep, self.rungs.exploding)
        self.toy.told_between = self.rungs.between
        self.x = start(self.sigmas[0])
        path = sampler.transcription(self)
        path = path if isinstance(path[0], tuple) else list(zip(self.sigmas, path))
        self.end = path[-1][1]
        # The states of a flow model are in its own scaling.
        exploded = self.rungs.flow and self.rungs.exploding
        self.states = [x / (1 + sigma) if exploded else x for sigma, x in path[1:]]
        assert all(np.isfinite(x).all() for x in self.states), (sampler.name, ladder, prediction, steps)


# The adapters from a run to the transcriptions.


def plain(function, **options):
    return lambda run: function(run.toy, run.x, run.sigmas, **options)


def noisy(function, **options):
    return lambda run: function(run.toy, run.x, run.sigmas, noise=run.toy.noise, **options)


def clipped(function, clip, **options):
    def transcription(run):
        more = {"noise": run.toy.noise} if "noise" in inspect.signature(function).parameters else {}
        return function(lambda x, sigma: clip(run.toy(x, sigma)), run.x, run.sigmas, **options, **more)

    return transcription


def half(denoised):
    return np.clip(denoised, -0.5, 0.5)


def own_ends(run, sigma_min=None):
    """Returns the first and the last sigma of a sampler that takes only the ends of a ladder."""
    below = [s for s in run.sigmas[1:] if 0 < s < run.sigmas[0]]
    return run.sigmas[0], sigma_min or (below[-1] if below else run.rungs.lowest)


def fast(sigma_min=None, **options):
    return lambda run: ode.dpm_fast(run.toy, run.x, *own_ends(run, sigma_min), run.steps, noise=run.toy.noise, **options)


def adaptive(**options):
    return lambda run: ode.dpm_adaptive(run.toy, run.x, *own_ends(run), noise=run.toy.noise, **options)


def restarts(segments=None, **options):
    def transcription(run):
        plan = ode.restart_plan(run.sigmas) if segments is None else (run.sigmas, segments)
        return ode.restart(run.toy, run.x, *plan, noise=run.toy.noise, **options)

    return transcription


def ddim(one=False, next_rung=False, stop=False, **options):
    """DDIM.

    `one`: the run ends at alpha-bar 1. `next_rung`: steps end at the next rung rather than a stride
    of timesteps below. `stop`: the run ends on the last rung, in the variance-preserving scaling.
    """

    def transcription(run):
        stride = TRAINED // run.steps

        def target(i):
            t = run.rungs.timesteps[i]
            if next_rung and run.sigmas[i + 1] > 0:
                return run.sigmas[i + 1]
            if not next_rung and t >= stride:
                return run.rungs.trained(t - stride)
            return 0.0 if one else min(run.rungs.lowest, run.sigmas[i])

        steps = run.steps - 1 if stop and run.steps > 1 else run.steps
        targets = [target(i) for i in range(steps)]
        rungs = [*run.sigmas[:steps], 0.0 if stop else run.sigmas[steps]]
        return sde.ddim(run.toy, run.x, rungs, targets, flow=run.rungs.flow, noise=run.toy.noise, **options)

    return transcription


def pndm(skip_prk, one=False, next_rung=False, stop=False):
    """PNDM. It has the options of `ddim`."""

    def transcription(run):
        n, final = run.steps, 0.0 if one else run.rungs.lowest
        if next_rung:
            times, stride, middle = list(range(n, 0, -1)), 1, 0.5

            def sigma_at(t):
                ends = [run.sigmas[n - k] if k > 0 or run.sigmas[n] > 0 else final for k in (math.floor(t), math.ceil(t))]
                return math.sqrt(ends[0] * ends[1]) if t != round(t) else ends[0]

        else:
            times, stride = [int(t) for t in run.rungs.timesteps], TRAINED // n
            middle = stride // 2

            def sigma_at(t):
                return run.rungs.trained(t) if t >= 0 else final

        if stop and n > 1:
            times = times[:-1]
        average = "v" if run.prediction == "v" else "epsilon"
        label = 0.0 if stop else run.sigmas[len(times)]
        return multistep.pndm(run.toy, run.x, times, sigma_at, stride, middle, skip_prk, average, label=label)

    return transcription


def lcm(**options):
    return lambda run: sde.lcm(run.toy, run.x, run.sigmas, run.rungs.timesteps, noise=run.toy.noise, **options)


def tcd(gamma):
    # Use float32 as torch does. Otherwise a product near a whole number could fall on its other
    # side.
    part = np.float32(1 - float(np.float32(gamma)))

    def transcription(run):
        def target(i):
            after = run.sigmas[i + 1]
            if i + 1 == run.steps:
                return min(run.rungs.lowest, run.sigmas[i]) if after == 0 else after
            t = np.floor(part * np.float32(run.rungs.timesteps[i + 1]))
            return min(run.rungs.trained(float(t)), after) if gamma > 0 else after

        between = [target(i) for i in range(run.steps)]
        return sde.tcd(run.toy, run.x, run.sigmas, between, run.rungs.flow, noise=run.toy.noise)

    return transcription


def sa(tau=1.0, interval=(200, 800), **options):
    def transcription(run):
        taus = [tau if interval[0] <= t <= interval[1] else 0.0 for t in run.rungs.timesteps]
        return sde.sa_solver(run.toy, run.x, run.sigmas, taus, noise=run.toy.noise, **options)

    return transcription


def ddpm(**options):
    def transcription(run):
        last_is_zero = run.rungs.timesteps[-1] == 0
        return sde.ddpm(run.toy, run.x, run.sigmas, last_is_zero=last_is_zero, noise=run.toy.noise, **options)

    return transcription


def ends_at_zero(run):
    return run.sigmas[-1] == 0


def deis(order, lower=True):
    return lambda run: multistep.deis(run.toy, run.x, run.sigmas, multistep.multistep_orders(run.steps, order, lower))


def dpm(order, lower=True, euler=False, clip=None, **options):
    def transcription(run):
        orders = multistep.multistep_orders(run.steps, order, lower, euler or ends_at_zero(run))
        model = run.toy if clip is None else lambda x, sigma: clip(run.toy(x, sigma))
        return multistep.dpm_multistep(model, run.x, run.sigmas, orders, **options)

    return transcription


def dpm_sde(order, lower=True, euler=False, **options):
    def transcription(run):
        orders = multistep.multistep_orders(run.steps, order, lower, euler or ends_at_zero(run))
        return sde.dpm_multistep_sde(run.toy, run.x, run.sigmas, orders, noise=run.toy.noise, **options)

    return transcription


def singlestep(order, lower=False, stochastic=False, **options):
    def transcription(run):
        orders = multistep.singlestep_orders(run.steps, order, lower, ends_at_zero(run))
        source = run.toy.noise if stochastic else None
        return multistep.dpm_singlestep(run.toy, run.x, run.sigmas, orders, sde=source, **options)

    return transcription


CHURN = {"s_churn": 10.0, "s_tmin": 0.1, "s_tmax": 5.0, "s_noise": 1.003}
LESS = {"eta": 0.5, "s_noise": 1.1}
PID = {"rtol": 0.005, "pcoeff": 0.2, "icoeff": 0.7, "dcoeff": 0.1}
# The segments of the authors' code for CIFAR-10, within Stable Diffusion's range.
SEGMENTS = [(5.0, 10.0, 4, 1), (1.09, 1.92, 3, 2), (0.06, 0.30, 3, 3)]


def samplers():
    k, d, g, flow = K_LADDERS, DPM_LADDERS, GRID_LADDERS, {"flow": ["flow"]}

    def row(name, transcription, conventions=EXACT, ladders=k, main=True, **more):
        return Sampler(name, transcription, conventions, ladders, main=main, **more)

    def option(name, transcription, conventions=EXACT, ladders=k, **more):
        return Sampler(name, transcription, conventions, ladders, option=True, **more)

    yield row("euler", plain(ode.euler), SLOPE, k=("sample_euler", {}))
    yield option("euler churned", noisy(ode.euler, **CHURN), k=("sample_euler", CHURN))
    yield row("heun", plain(ode.heun), SLOPE, k=("sample_heun", {}))
    yield option("heun churned", noisy(ode.heun, **CHURN), k=("sample_heun", CHURN))
    yield option("heun clipped", clipped(ode.heun, half))
    yield option("heun thresholded", clipped(ode.heun, lambda d: multistep.threshold(d, 0.9, 1.5)))
    yield row("dpm2", plain(ode.dpm_2), SLOPE, k=("sample_dpm_2", {}))
    yield option("dpm2 churned", noisy(ode.dpm_2, **CHURN), k=("sample_dpm_2", CHURN))
    yield option("dpm2 webui", plain(ode.dpm_2), DROPPED, k=("sample_dpm_2", {}))
    yield row("lms", plain(ode.lms), SLOPE, k=("sample_lms", {}))
    for order in (1, 2, 3):
        yield option(f"lms {order}", plain(ode.lms, order=order), k=("sample_lms", {"order": order}))
    yield row("dpm-fast", fast(), k=("sample_dpm_fast", {}))
    yield option("dpm-fast noisy", fast(eta=1.0), k=("sample_dpm_fast", {"eta": 1.0}))
    yield option("dpm-fast to 0.1", fast(0.1, **LESS))
    yield row("dpm-adaptive", adaptive(), k=("sample_dpm_adaptive", {}))
    yield option("dpm-adaptive 2", adaptive(order=2), k=("sample_dpm_adaptive", {"order": 2}))
    yield option("dpm-adaptive noisy", adaptive(eta=1.0), k=("sample_dpm_adaptive", {"eta": 1.0}))
    yield option("dpm-adaptive pid", adaptive(**PID), k=("sample_dpm_adaptive", PID))
    yield option("dpm-adaptive bounded", adaptive(max_calls=12))
    yield row("dpmpp-2m", plain(ode.dpmpp_2m), DPM, d, k=("sample_dpmpp_2m", {}))
    yield row("gradient-estimation", plain(ode.gradient_estimation), SLOPE)
    yield option("gradient-estimation 1.5", plain(ode.gradient_estimation, gamma=1.5))
    yield option("gradient-estimation slope", plain(ode.gradient_estimation, denoise_last=False))
    yield row("res-2m", plain(ode.res_multistep), SLOPE)
    yield row("euler-cfg-pp", plain(sde.euler_cfg_pp), both=True)
    yield row("euler-a-cfg-pp", noisy(sde.euler_cfg_pp, eta=1.0), main=False, both=True)
    yield option("euler-a-cfg-pp less", noisy(sde.euler_cfg_pp, **LESS), both=True)
    yield row("restart", restarts())
    yield option("restart authors", restarts(SEGMENTS, snap=False, s_noise=1.003))
    yield option("restart snapped", restarts(SEGMENTS))

    def ancestral(name, function, k_function, conventions=EXACT, main=True, **options):
        yield row(name, noisy(function, **options), conventions, main=main, k=(k_function, options))
        yield option(f"{name} less", noisy(function, **options, **LESS), k=(k_function, {**options, **LESS}))

    yield from ancestral("euler-a", sde.euler_ancestral, "sample_euler_ancestral")
    yield option("euler-a flow", noisy(sde.euler_ancestral_flow), SLOPE, flow)
    yield from ancestral("dpm2-a", sde.dpm2_ancestral, "sample_dpm_2_ancestral")
    beyond = {"eta": 2.0}
    yield option("dpm2-a beyond", noisy(sde.dpm2_ancestral, **beyond), k=("sample_dpm_2_ancestral", beyond))
    yield option("dpm2-a webui", noisy(sde.dpm2_ancestral), DROPPED, k=("sample_dpm_2_ancestral", {}))
    yield from ancestral("dpmpp-2s-a", sde.dpmpp_2s_ancestral, "sample_dpmpp_2s_ancestral")
    yield from ancestral("dpmpp-sde", sde.dpmpp_sde, "sample_dpmpp_sde")
    yield option("dpmpp-sde at 0.3", noisy(sde.dpmpp_sde, r=0.3), k=("sample_dpmpp_sde", {"r": 0.3}))
    yield from ancestral("dpmpp-2m-sde", sde.dpmpp_2m_sde, "sample_dpmpp_2m_sde")
    heun, k_heun = {"solver": "heun"}, {"solver_type": "heun"}
    yield row("dpmpp-2m-sde-heun", noisy(sde.dpmpp_2m_sde, **heun), main=False, k=("sample_dpmpp_2m_sde", k_heun))
    yield option(
        "dpmpp-2m-sde-heun less", noisy(sde.dpmpp_2m_sde, **heun, **LESS), k=("sample_dpmpp_2m_sde", {**k_heun, **LESS})
    )
    yield from ancestral("dpmpp-3m-sde", sde.dpmpp_3m_sde, "sample_dpmpp_3m_sde")
    yield option("dpmpp-3m-sde plain", noisy(sde.dpmpp_3m_sde, eta=0.0), k=("sample_dpmpp_3m_sde", {"eta": 0.0}))
    yield option("dpmpp-3m-sde webui", noisy(sde.dpmpp_3m_sde), DROPPED, k=("sample_dpmpp_3m_sde", {}))

    yield row("ddpm", ddpm(), WHOLE, DDPM_LADDERS)
    yield option("ddpm large", ddpm(variance="fixed_large"), WHOLE, DDPM_LADDERS)
    yield option("ddpm clipped", clipped(sde.ddpm, half), WHOLE, DDPM_LADDERS)
    yield row("lcm", lcm(), TOLD_WHOLE, LCM_LADDERS)
    yield option("lcm near", lcm(timestep_scaling=0.001), TOLD_WHOLE, LCM_LADDERS)
    yield option("lcm exploding", lcm(timestep_scaling=0.001, boundary="exploding"), TOLD_WHOLE, LCM_LADDERS)
    yield option("lcm none", lcm(boundary=None), WHOLE, LCM_LADDERS)
    yield row("tcd", tcd(0.3), TOLD_WHOLE, LCM_LADDERS)
    yield option("tcd 0", tcd(0.0), TOLD_WHOLE, LCM_LADDERS)
    yield option("tcd 1", tcd(1.0), TOLD_WHOLE, LCM_LADDERS)

    noise_form = {"prediction": "noise_prediction"}
    yield row("sa-solver", sa(), DPM_ABOVE, d)
    for orders in ((1, 1), (1, 2), (2, 0), (3, 3), (3, 4), (4, 4)):
        predictor, corrector = orders
        yield option(f"sa-solver {predictor} {corrector}", sa(predictor=predictor, corrector=corrector), DPM_ABOVE, d)
    yield option("sa-solver noise", sa(**noise_form), DPM_ABOVE, d)
    yield option("sa-solver noise 3 3", sa(predictor=3, corrector=3, **noise_form), DPM_ABOVE, d)
    yield option("sa-solver everywhere", sa(tau=0.5, interval=(0, 1000)), DPM_ABOVE, d)
    yield option("sa-solver full", sa(predictor=3, corrector=3, lower_order_final=False), DPM_ABOVE, {"epsilon": ["linspace"]})
    yield option("sa-solver to zero", sa(), DPM, d)
    yield row("sa-solver-pece", sa(predictor=3, corrector=4, again=True), DPM, d, main=False)
    yield row("er-sde", noisy(sde.er_sde))
    for order in (1, 2):
        yield option(f"er-sde {order}", noisy(sde.er_sde, order=order))
    for scale in sde.ER_SCALES:
        if scale != "sde_5":
            yield option(f"er-sde {scale}", noisy(sde.er_sde, scale=scale))
    yield option("er-sde exact", noisy(sde.er_sde, points=None, threshold=0.0, s_noise=0.9))

    yield row("ddim", ddim(), WHOLE, g)
    yield option("ddim noisy", ddim(eta=1.0), WHOLE, g)
    yield option("ddim half to one", ddim(eta=0.5, one=True), WHOLE, g)
    yield option("ddim clipped", ddim(clip=half), WHOLE, g)
    yield option("ddim clipped noise", ddim(clip=half, reclip=True), WHOLE, g)
    yield option("ddim next rung", ddim(one=True, next_rung=True), WHOLE)
    yield option("ddim webui", ddim(one=True, next_rung=True, stop=True), WHOLE)
    yield row("ddim-cfg-pp", ddim(next_rung=True, both=True), WHOLE, DDPM_LADDERS, main=False, both=True)
    yield row("pndm", pndm(False), WHOLE, g, least=4)
    yield option("pndm one", pndm(False, one=True), WHOLE, g)
    yield option("pndm next rung", pndm(False, one=True, next_rung=True), WHOLE)
    yield row("plms", pndm(True), WHOLE, g, main=False)
    yield option("plms one", pndm(True, one=True), WHOLE, g)
    yield option("plms next rung", pndm(True, one=True, next_rung=True), WHOLE)
    yield option("plms webui", pndm(True, one=True, next_rung=True, stop=True), WHOLE)

    yield row("ipndm", plain(multistep.ipndm), SLOPE)
    for order in (1, 2, 3):
        yield option(f"ipndm {order}", plain(multistep.ipndm, order=order), SLOPE)
    yield option("ipndm slope", plain(multistep.ipndm, denoise_last=False), SLOPE)
    yield row("ipndm-v", plain(multistep.ipndm, weights="published"), SLOPE, main=False)
    yield option("ipndm-v 3", plain(multistep.ipndm, order=3, weights="published"), SLOPE)
    yield option("ipndm variable", plain(multistep.ipndm, weights="variable"), SLOPE)
    yield row("deis", deis(2), DPM_ABOVE, d)
    yield option("deis 1", deis(1), DPM_ABOVE, d)
    yield option("deis 3", deis(3), DPM_ABOVE, d)
    yield option("deis 3 full to zero", deis(3, lower=False), DPM, d)
    yield row("deis-tab", plain(multistep.deis_time), DPM, d, main=False)
    yield option("deis-tab 2", plain(multistep.deis_time, order=2), DPM, d)

    noise = {"noise": True}
    for order in (1, 2, 3):
        yield row(f"dpm-solver-{order}m", dpm(order, **noise), DPM_ABOVE, d, main=order == 2)
    yield option("dpm-solver-2m heun", dpm(2, heun=True, **noise), DPM_ABOVE, d)
    yield option("dpm-solver-3m exact", dpm(3, curvature=2.0, **noise), DPM_ABOVE, d)
    yield row("dpmpp-3m", dpm(3), DPM, d, main=False)
    yield option("dpmpp-3m exact", dpm(3, curvature=2.0), DPM, d)
    # On this ladder, the last step has a length.
    spaced = {"epsilon": ["linspace"]}
    yield option("dpmpp-3m full", dpm(3, lower=False), DPM_ABOVE, spaced)
    yield option("dpmpp-3m euler", dpm(3, lower=False, euler=True), DPM_ABOVE, spaced)
    yield option("dpmpp-1m", dpm(1), DPM, d)
    yield option("dpmpp-2m solver", dpm(2), DPM, d)
    yield option("dpmpp-2m heun", dpm(2, heun=True), DPM, d)
    yield option("dpmpp-2m clipped", dpm(2, clip=half), DPM, d)
    for order in (1, 2, 3):
        yield option(f"sde-dpmpp-{order}m", dpm_sde(order), DPM, d)
    yield option("sde-dpmpp-2m heun", dpm_sde(2, solver="heun"), DPM, d)
    yield option("sde-dpmpp-3m exact", dpm_sde(3, third="exact"), DPM, d)
    on_noise = {"algorithm": "sde-dpmsolver"}
    yield option("sde-dpm-1m", dpm_sde(1, **on_noise), DPM_ABOVE, spaced)
    yield option("sde-dpm-2m", dpm_sde(2, **on_noise), DPM_ABOVE, spaced)
    yield option("sde-dpm-2m heun", dpm_sde(2, solver="heun", **on_noise), DPM_ABOVE, spaced)

    for order in (2, 3):
        yield row(f"dpm-solver-{order}s", singlestep(order, **noise), DPM_ABOVE, d, main=False)
        yield option(f"dpm-solver-{order}s heun", singlestep(order, heun=True, **noise), DPM_ABOVE, d)
        yield row(f"dpmpp-{order}s", singlestep(order), DPM, d, main=order == 2)
        yield option(f"dpmpp-{order}s heun", singlestep(order, heun=True), DPM, d)
        yield option(f"dpmpp-{order}s lower", singlestep(order, lower=True), DPM_ABOVE, spaced)
        yield option(f"sde-dpmpp-{order}s", singlestep(order, stochastic=True), DPM, d)
        yield option(f"sde-dpmpp-{order}s heun", singlestep(order, stochastic=True, heun=True), DPM, d)
    exact = {"stochastic": True, "heun": True, "third": "exact"}
    yield option("sde-dpmpp-3s exact", singlestep(3, **exact), DPM, d)

    u = UNIPC_LADDERS
    yield row("unipc", plain(multistep.unipc), DPM, u)
    yield option("unipc 1", plain(multistep.unipc, order=1), DPM, u)
    yield option("unipc 3", plain(multistep.unipc, order=3), DPM, u)
    yield option("unipc bh1", plain(multistep.unipc, bh1=True), DPM, u)
    yield option("unipc bh1 3", plain(multistep.unipc, order=3, bh1=True), DPM, u)
    yield option("unipc noise", plain(multistep.unipc, noise=True), DPM_ABOVE, spaced)
    yield option("unipc noise bh1 3", plain(multistep.unipc, order=3, bh1=True, noise=True), DPM_ABOVE, spaced)
    yield option("unipc full", plain(multistep.unipc, order=3, lower_order_final=False), DPM_ABOVE, spaced)
    yield option("unipc predictor", plain(multistep.unipc, order=3, disable=range(1000)), DPM, u)
    yield option("unipc some", plain(multistep.unipc, disable=(0, 2)), DPM, u)
    clip_unipc = lambda run: multistep.unipc(lambda x, s: half(run.toy(x, s)), run.x, run.sigmas)  # noqa: E731
    yield option("unipc clipped", clip_unipc, DPM, u)


# k-diffusion


def load_k_diffusion(path=None):
    """Loads k-diffusion's sampling.py alone, from the file or from the installed package."""
    if path is None:
        found = importlib.util.find_spec("k_diffusion")
        assert found, "pip install --no-deps k-diffusion==0.1.1.post1, or --k-diffusion sampling.py"
        path = f"{list(found.submodule_search_locations)[0]}/sampling.py"
    utils, package = types.ModuleType("k_diffusion.utils"), types.ModuleType("k_diffusion")
    utils.append_dims = lambda x, dims: x[(...,) + (None,) * (dims - x.ndim)]
    package.utils, package.__path__ = utils, []
    stubs = {"k_diffusion": package, "k_diffusion.utils": utils}
    for name in ("torchdiffeq", "torchsde"):
        stubs[name] = types.ModuleType(name)
    stubs["torchdiffeq"].odeint = None
    before = {name: sys.modules.get(name) for name in stubs}
    sys.modules.update(stubs)
    spec = importlib.util.spec_from_file_location("k_diffusion.sampling", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, old in before.items():
        sys.modules.pop(name)
        if old is not None:
            sys.modules[name] = old
    return module


class Torch:
    """A toy model for k-diffusion: a batch of one in float64. Its noise is the noise that `ours`
    drew at the same place."""

    def __init__(self, toy, ours):
        import torch

        self.torch, self.toy, self.ours = torch, toy, ours

    def tensor(self, x):
        return self.torch.tensor(np.array(x), dtype=self.torch.float64)[None]

    def __call__(self, x, sigma, *_, **__):
        return self.tensor(self.toy(x[0].numpy(), float(sigma.flatten()[0])))

    def noise(self, *_):
        return self.tensor(self.ours.drawn_after(len(self.toy.asked)))


class Randn:
    """`torch` with another randn_like."""

    def __init__(self, model):
        self._torch, self._model = model.torch, model

    def __getattr__(self, name):
        return getattr(self._torch, name)

    def randn_like(self, x):
        return self._model.noise()


def against_k_diffusion(k, sampler, run):
    """Returns the worst relative error over the last state and every state that the model is called
    with."""
    name, options = sampler.k
    told = iter(run.toy.timesteps)
    toy = Toy(run.prediction, lambda sigma: next(told), run.rungs.exploding)
    model = Torch(toy, run.toy)
    function, x = getattr(k, name), model.tensor(run.x)
    options = dict(options, disable=True)
    if "noise_sampler" in inspect.signature(function).parameters:
        options["noise_sampler"] = model.noise
    k.torch = Randn(model)
    try:
        if name in ("sample_dpm_fast", "sample_dpm_adaptive"):
            sigma_max, sigma_min = own_ends(run)
            count = [run.steps] if name == "sample_dpm_fast" else []
            end = function(model, x, sigma_min, sigma_max, *count, **options)
        else:
            end = function(model, x, model.torch.tensor(run.sigmas, dtype=model.torch.float64), **options)
    finally:
        k.torch = model.torch
    return compare((run.toy.asked, run.end), (toy.asked, end[0].numpy()))


# The output files.


def write(folder, versions, k_path=None):
    import torch
    from safetensors.numpy import save_file

    torch.set_default_dtype(torch.float64)  # else k-diffusion's torch.tensor(sigma) is float32
    k = load_k_diffusion(k_path)
    lines, states, refused, worst = [], [], [], defaultdict(float)
    for sampler in samplers():
        for ladder, prediction, counts in sampler.cases():
            made, told, error = defaultdict(list), [], 0.0
            for steps in counts:
                where = f"{sampler.name} {json.dumps(ladder)} {prediction} {steps}"
                if steps < sampler.least:
                    refused.append({"sampler": sampler.name, "ladder": ladder, "prediction": prediction, "steps": steps})
                    continue
                try:
                    run = Run(sampler, ladder, prediction, steps)
                except AssertionError as problem:
                    assert "too near" in str(problem), where
                    print(f"left out: {where}: {problem}")
                    continue
                for key, value in (("steps", steps), ("calls", len(run.toy.asked)), ("draws", len(run.toy.drawn))):
                    made[key].append(value)
                made["states"].append(len(run.states))
                states += run.states
                if steps == 5:
                    told = [float(f"{t:.7g}") for t in run.toy.timesteps]
                # These two functions use an unset variable if the first step is the last.
                crashes = steps == 1 and sampler.k and sampler.k[0] in ("sample_dpmpp_2m_sde", "sample_dpmpp_3m_sde")
                if sampler.k and not crashes:
                    off = against_k_diffusion(k, sampler, run)
                    assert off < 1e-8, f"{where}: k-diffusion is {off:.1e} away"
                    error = max(error, off)
            line = {"sampler": sampler.name, "ladder": ladder, "prediction": prediction, **made, "timesteps_at_5": told}
            if sampler.k:
                line["k_diffusion"] = float(f"{error:.1e}")
                worst[sampler.name] = max(worst[sampler.name], error)
            lines.append(line)
    torch.set_default_dtype(torch.float32)
    save_file({"states": np.asarray(states, np.float32)}, folder / "samplers.safetensors")
    rows = [json.dumps(line) for line in lines]
    (folder / "samplers.json").write_text(
        "{" + f'"versions": {json.dumps(versions)},\n"cases": [\n' + ",\n".join(rows) + "\n],\n"
        '"refused": [\n' + ",\n".join(json.dumps(row) for row in refused) + "\n]}\n"
    )
    print(f"{len(lines)} cases of samplers, {len(states)} states; k-diffusion is within {max(worst.values()):.1e}")
