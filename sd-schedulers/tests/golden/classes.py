"""Writes classes.json and classes.safetensors: every scheduler class of diffusers 0.42.1 that the
crate reads, on the toy model (reference/toy.py).

A case is a configuration as in `scheduler_config.json`. Its runs come from the unchanged class,
with float32 inside and the same draws of noise. Each run is compared with the transcription in
float64. A configuration that a class refuses, or for which its result is not finite, is listed with
the class's message. tests/golden.rs has this crate's answers to these.
"""

import json
import math
import sys
import warnings
from collections import defaultdict
from types import SimpleNamespace

import numpy as np

import suite
from reference import multistep, ode, sde
from reference.rungs import SD, Rungs
from reference.toy import STEPS, Toy, distance, output, start

PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample", "flow_prediction": "flow"}
# The shift for a picture of 1024 × 1024 pixels.
MU = 1.15

# Classes with two calls for each rung but the last.
DOUBLED = ("HeunDiscrete", "FlowMatchHeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete", "DPMSolverSDE")
# Classes whose state is in the variance-exploding scaling.
EXPLODING = ("EulerDiscrete", "EulerAncestralDiscrete", "LMSDiscrete", "EDMEuler", "EDMDPMSolverMultistep") + DOUBLED
# Classes with whole timesteps and no sigmas.
ON_GRID = ("DDIM", "DDPM", "PNDM", "LCM", "TCD")
DPM_FAMILY = ("DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep", "UniPCMultistep", "SASolver")
K_FAMILY = ("EulerDiscrete", "HeunDiscrete", "LMSDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete", "DPMSolverSDE")
# Classes that take seconds per run in diffusers from ten steps on.
SLOW = ("LMSDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete")


def cases():
    """Yields the class, the keys, the numbers of steps, and the argument eta of `step`."""
    spacings = [{"timestep_spacing": spacing} for spacing in ("leading", "linspace", "trailing")]
    leading, linspace, trailing = spacings
    karras, exponential, beta = ({f"use_{shape}_sigmas": True} for shape in ("karras", "exponential", "beta"))
    v, sample = {"prediction_type": "v_prediction"}, {"prediction_type": "sample"}
    latent = {"clip_sample": False}
    linear = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02, "steps_offset": 0}
    cosine = {"beta_schedule": "squaredcos_cap_v2"}
    zero_snr = {"rescale_betas_zero_snr": True, **v, **trailing}
    one, both = (10,), (5, 20)

    def each(name, steps, *options):
        for option in options:
            yield name, option, steps, None

    for name in K_FAMILY:
        few = (5,) if name in SLOW else one
        yield name, leading, (1, 2, 5, 10) if name in SLOW else STEPS, None
        yield from each(name, few, linspace, trailing, {**leading, **karras}, {**trailing, **karras}, karras, exponential, beta)
        yield from each(name, few, {**leading, **v}, {**karras, **v})
        if name in ("EulerDiscrete", "HeunDiscrete", "LMSDiscrete"):  # the others refuse it
            yield from each(name, few, {**linspace, **sample}, {**trailing, **sample})
        yield from each(name, (5,), {**linear, **leading})
        if "Ancestral" not in name:  # its states are not finite on cosine betas
            yield from each(name, (5,), {**cosine, **trailing, **karras})
    yield from each("EulerDiscrete", one, {**karras, "sigma_min": 0.1, "sigma_max": 10.0})
    yield from each("EulerDiscrete", one, {**trailing, "final_sigmas_type": "sigma_min"})
    yield from each("HeunDiscrete", (8,), *({**linspace, "clip_sample": True, "clip_sample_range": r} for r in (1.0, 0.4)))
    yield from each("HeunDiscrete", one, {"beta_schedule": "exp", **leading})
    yield "EulerAncestralDiscrete", leading, STEPS, None
    yield from each("EulerAncestralDiscrete", one, linspace, trailing, {**leading, **v}, {**trailing, **v}, {**linear, **leading})
    for name in ("EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep", "UniPCMultistep"):
        yield from each(name, (6,), zero_snr)

    for name in ("DDIM", "DDPM"):
        yield name, {**leading, **latent}, STEPS, None
        yield from each(name, one, *({**keys, **latent} for keys in (linspace, trailing)))
        yield from each(name, one, *({**keys, **latent, **kind} for keys in (leading, trailing) for kind in (v, sample)))
        yield from each(name, (8,), {**linspace, "clip_sample_range": 0.5}, {**linear, **leading, **latent})
        yield from each(name, (7,), {**trailing, **latent, "thresholding": True, "sample_max_value": 1.5})
    for eta in (0.5, 1.0):
        for alpha in (True, False):
            for keys in spacings:
                yield "DDIM", {**keys, **latent, "set_alpha_to_one": alpha}, (7,), eta
    yield "DDIM", {**leading, "clip_sample_range": 0.5}, (8,), 0.5
    yield from each("DDPM", one, *({**leading, **latent, "variance_type": kind} for kind in ("fixed_small_log", "fixed_large")))
    yield from each("DDPM", one, *({"beta_schedule": kind, **leading, **latent} for kind in ("sigmoid", "laplace")))
    for skip in (True, False):
        keys = {"skip_prk_steps": skip}
        yield "PNDM", {**leading, **keys}, STEPS if skip else (5, 10, 25, 50), None
        ends = {**leading, **keys, "set_alpha_to_one": True}
        yield from each("PNDM", (7, 10), {**linspace, **keys}, {**trailing, **keys}, ends)
        yield from each("PNDM", one, {**leading, **keys, **v})
    for name in ("LCM", "TCD"):
        yield name, latent, STEPS, None
        yield from each(name, (4,), {**latent, **v}, {**latent, **sample}, {**latent, "original_inference_steps": 20})
    yield from each("LCM", (4,), {**latent, "timestep_scaling": 0.001}, {"clip_sample": True, "clip_sample_range": 0.5})
    for eta in (0.0, 1.0):
        yield "TCD", latent, one, eta

    for name in DPM_FAMILY:
        keys = {} if name == "DPMSolverSinglestep" else leading
        yield name, keys, STEPS, None
        yield from each(name, one, karras, exponential, beta, {**karras, **cosine}, {**karras, **v}, {**keys, **sample})
        yield from each(name, one, {**linear, **keys}, {**exponential, **v}, {**beta, **sample})
        if name != "DPMSolverSinglestep":
            yield from each(name, one, linspace, trailing, {**linspace, **v}, {**trailing, **sample})
        thresholds = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5}
        yield from each(name, both, {**keys, **thresholds})
        for shift in (1.0, 3.0):
            flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
            yield name, flow, STEPS if shift == 3.0 else one, None
        if name != "SASolver":
            yield from each(name, one, {**flow, "use_dynamic_shifting": True})
    yield from each("DPMSolverMultistep", one, {"use_lu_lambdas": True})
    yield from each("UniPCMultistep", one, {**flow, "shift_terminal": 0.1}, {**flow, **karras})
    above = {"final_sigmas_type": "sigma_min", **linspace}
    kinds = {"dpmsolver++": {}, "dpmsolver": above, "sde-dpmsolver++": {}, "sde-dpmsolver": above}
    for order in (1, 2, 3):
        for kind, keys in kinds.items():
            for solver in ("midpoint", "heun")[: 1 if order == 1 else 2]:
                options = {"solver_order": order, "algorithm_type": kind, "solver_type": solver}
                if not (kind == "sde-dpmsolver" and order == 3):
                    yield from each("DPMSolverMultistep", both, {**linspace, **keys, **options})
                if kind != "sde-dpmsolver":
                    single = {key: value for key, value in keys.items() if key != "timestep_spacing"}
                    yield from each("DPMSolverSinglestep", both, {**single, **options})
        yield from each("DEISMultistep", both, {"solver_order": order}, {"solver_order": order, "lower_order_final": False})
        for solver in ("bh1", "bh2"):
            for x0 in (True, False):
                yield from each(
                    "UniPCMultistep", both, {**above, "solver_order": order, "solver_type": solver, "predict_x0": x0}
                )
        disabled = ([0], list(range(100)))
        yield from each("UniPCMultistep", both, *({"solver_order": order, "disable_corrector": steps} for steps in disabled))
    yield from each("DPMSolverMultistep", both, {**above, "solver_order": 3, "lower_order_final": False, "euler_at_final": True})
    lower = {"final_sigmas_type": "sigma_min", "solver_order": 3, "lower_order_final": True}
    yield from each("DPMSolverSinglestep", (6, 9), lower)
    yield from each("UniPCMultistep", both, {**above, "solver_order": 3, "lower_order_final": False})
    for orders in ((1, 1), (1, 2), (2, 1)):
        for kind in ("data_prediction", "noise_prediction"):
            keys = {"predictor_order": orders[0], "corrector_order": orders[1], "algorithm_type": kind}
            yield from each("SASolver", both, {**linspace, **keys})
    # With orders 3 and 4, the class loses digits in float32.
    yield from each("SASolver", (5,), {**linspace, "predictor_order": 3, "corrector_order": 3})

    yield "FlowMatchEulerDiscrete", {}, STEPS, None
    dynamic = {"use_dynamic_shifting": True}
    shifted = [{"shift": 3.0}, dynamic, {**dynamic, "time_shift_type": "linear"}, {"shift": 3.0, "shift_terminal": 0.1}]
    yield from each("FlowMatchEulerDiscrete", one, *shifted, *({"shift": 3.0, **shape} for shape in (karras, exponential, beta)))
    for name in ("FlowMatchHeunDiscrete", "FlowMatchLCM"):
        yield name, {}, STEPS, None
        yield from each(name, one, {"shift": 3.0})
    yield from each("FlowMatchEulerDiscrete", one, {"stochastic_sampling": True})
    yield "EDMEuler", {}, STEPS, None
    for name in ("EDMEuler", "EDMDPMSolverMultistep"):
        yield from each(name, one, v, {"sigma_schedule": "exponential"}, {"rho": 5.0, "sigma_data": 1.0})
        yield from each(name, one, {"final_sigmas_type": "sigma_min"})
    for options in ({"solver_order": 3}, {"solver_type": "heun"}, {"algorithm_type": "sde-dpmsolver++"}):
        yield from each("EDMDPMSolverMultistep", both, options)


def refusals():
    """Yields runs that a class refuses, or for which its result is not finite: name, class, keys
    and number of steps.

    They include every class with every prediction type. Only the refused ones stay on the list.
    """
    for name in (*K_FAMILY, "EulerAncestralDiscrete", *ON_GRID, *DPM_FAMILY, "EDMEuler"):
        for prediction in PREDICTIONS:
            plms = {"skip_prk_steps": True} if name == "PNDM" else {}
            yield f"{name} {prediction}", name, {"prediction_type": prediction, **plms}, 5
    flow, above = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}, {"final_sigmas_type": "sigma_min"}
    for name in ("DPMSolverMultistep", "DPMSolverSinglestep"):
        yield f"{name} flow dpmsolver", name, {**flow, **above, "algorithm_type": "dpmsolver"}, 5
        yield f"{name} dpmsolver zero", name, {"algorithm_type": "dpmsolver"}, 5
    yield "UniPC flow noise", "UniPCMultistep", {**flow, **above, "predict_x0": False}, 5
    for steps in (1, 2, 3):
        yield f"PNDM {steps} steps", "PNDM", {"skip_prk_steps": False}, steps
    for keys in ({"solver_type": "bh1"}, {"predict_x0": False}, {"lower_order_final": False}):
        yield f"UniPC {next(iter(keys))} zero", "UniPCMultistep", keys, 5
    for form in ({"solver_type": "heun"}, {"solver_order": 3}):
        keys = {**above, **form, "use_karras_sigmas": True, "lower_order_final": False}
        yield f"DPMSolverMultistep {next(iter(form))} last step of no length", "DPMSolverMultistep", keys, 5
    third = {**above, "algorithm_type": "sde-dpmsolver", "solver_order": 3}
    yield "DPMSolverMultistep sde-dpmsolver 3", "DPMSolverMultistep", third, 5
    for kind in ("fixed_large_log", "learned", "learned_range"):
        yield f"DDPM {kind}", "DDPM", {"variance_type": kind, "clip_sample": False}, 5
    yield "two shapes", "EulerDiscrete", {"use_karras_sigmas": True, "use_beta_sigmas": True}, 5
    yield "SASolver corrector 0", "SASolver", {"corrector_order": 0}, 5
    yield "LCM 51 steps", "LCM", {}, 51
    yield "TCD 51 steps", "TCD", {}, 51
    yield "FlowMatch terminal 1 step", "FlowMatchEulerDiscrete", {"shift_terminal": 0.1}, 1
    yield "UniPC terminal without flow", "UniPCMultistep", {"shift_terminal": 0.1}, 5
    for name in ("DDIM", "LCM", "TCD"):
        keys = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "clip_sample": False}
        yield f"{name} zero SNR epsilon", name, keys, 4


class ClassRungs(Rungs):
    """The rungs that a class made, with the sigmas of its training."""

    def __init__(self, sigmas, timesteps, table, flow, exploding):
        super().__init__(sigmas, timesteps, flow, exploding)
        self.table = table

    @property
    def lowest(self):
        return float(self.table[0])

    def trained(self, timestep):
        return float(self.table[int(timestep)])


class Case:
    """A class with its keys, ready to run."""

    def __init__(self, name, keys, eta=None):
        self.name, self.eta = name, eta
        trained = "FlowMatch" in name or "EDM" in name
        self.config = {"_class_name": f"{name}Scheduler", **({} if trained else SD), **keys}
        prediction = PREDICTIONS[keys.get("prediction_type", "epsilon")]
        self.flow = "FlowMatch" in name or bool(keys.get("use_flow_sigmas"))
        self.prediction = "flow" if self.flow else prediction
        if "EDM" in name:
            self.prediction = {"epsilon": "edm", "v": "edm-v"}.get(prediction, prediction)

    def get(self, key, default=None):
        return self.config.get(key, default)

    def run(self, steps):
        import diffusers

        cls = getattr(diffusers, self.config["_class_name"])
        scheduler = cls.from_config(self.config)
        scheduler.set_timesteps(steps, **({"mu": MU} if self.get("use_dynamic_shifting") else {}))
        return ClassRun(self, scheduler, steps)


class ClassRun:
    def __init__(self, case, scheduler, steps):
        self.case, self.scheduler, self.steps = case, scheduler, steps
        self.told = [float(t) for t in scheduler.timesteps]
        calls = range(len(self.told))
        reach = calls
        if case.name in DOUBLED:
            reach = [k for k in calls if k % 2 == 1 or k + 1 == len(calls)]
        elif case.name == "PNDM":
            if scheduler.config.skip_prk_steps:
                reach = [k for k in calls if k > 0 or len(calls) == 1]
            else:
                reach = [k for k in calls if k > 11 or k % 4 == 3]
        self.reach = set(reach)
        # The first call after a rung is reached belongs to the next rung.
        self.leave = [0] + [k + 1 for k in reach][:-1]
        if case.name == "PNDM" and scheduler.config.skip_prk_steps and len(calls) > 1:
            self.leave = [0] + [k for k in calls if k > 1]
        rung_timesteps = [self.told[k] for k in self.leave]
        if hasattr(scheduler, "alphas_cumprod"):
            bars = scheduler.alphas_cumprod
            self.table = (((1 - bars) / bars) ** 0.5).double().numpy()
        else:
            self.table = np.ones(1)
        if case.name in ON_GRID:
            sigmas = [self.table[int(t)] for t in rung_timesteps] + [0.0]
        else:
            sigmas = scheduler.sigmas.double().numpy()
            if case.name in DOUBLED:
                sigmas = np.append(np.append(sigmas[:1], sigmas[1::2])[:steps], 0.0)
        assert len(sigmas) == steps + 1 == len(rung_timesteps) + 1 == len(reach) + 1, "the class makes another number of rungs"
        self.sigmas, self.timesteps = [float(s) for s in sigmas], rung_timesteps

    def own_scale(self, sigma):
        """Returns the factor that turns a state of the golden file into the class's."""
        own = self.case.name in EXPLODING or self.case.flow
        return 1.0 if own else 1 / math.hypot(1, sigma)

    @property
    def initial_scale(self):
        """Returns the class's factor for the initial unit noise, in the scaling of the golden
        file."""
        scale = float(self.scheduler.init_noise_sigma) if hasattr(self.scheduler, "init_noise_sigma") else 1.0
        return scale / self.own_scale(self.sigmas[0])

    def transcribed(self):
        """Returns the states of the transcription in float64. It runs on the toy model
        `self.toy`."""
        case = self.case
        exploding = case.flow and "FlowMatch" not in case.name
        sigmas = [s / (1 - s) for s in self.sigmas] if exploding else self.sigmas
        told = iter(self.told)
        self.toy = Toy(case.prediction, lambda sigma: next(told), exploding, case.get("sigma_data", 0.5))
        run = SimpleNamespace(
            toy=self.toy,
            x=start(sigmas[0]),
            sigmas=sigmas,
            steps=self.steps,
            prediction=case.prediction,
            rungs=ClassRungs(sigmas, self.timesteps, self.table, case.flow, exploding),
        )
        path = transcription(case)(run)
        assert next(told, None) is None, "the transcription makes fewer calls"
        return [x / (1 + s) if exploding else x for x, s in zip(path[1:], sigmas[1:])]

    def states(self):
        """Returns the states of the class, with the noise that the transcription drew at the same
        place."""
        import torch

        scheduler, module = self.scheduler, sys.modules[type(self.scheduler).__module__]
        now = {}

        def draw(*_, **__):
            return torch.tensor(now["noise"], dtype=torch.float32).reshape(1, 8, 1)

        before = getattr(module, "randn_tensor", None)
        if before is not None:
            module.randn_tensor = draw
        if hasattr(scheduler, "noise_sampler"):
            scheduler.noise_sampler = draw
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        options = {} if self.case.eta is None else {"eta": self.case.eta}
        x = torch.tensor(start(self.sigmas[0]) * self.own_scale(self.sigmas[0]), dtype=torch.float32).reshape(1, 8, 1)
        states = []
        try:
            for k, t in enumerate(scheduler.timesteps):
                now["noise"] = self.toy.drawn_after(k + 1)
                m = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
                out = output(m.double().numpy().ravel(), float(t))
                x = scheduler.step(torch.tensor(out, dtype=torch.float32).reshape(1, 8, 1), t, x, **options).prev_sample
                if k in self.reach:
                    sigma = self.sigmas[len(states) + 1]
                    states.append(x.double().numpy().ravel() / self.own_scale(sigma))
        finally:
            if before is not None:
                module.randn_tensor = before
        return states


def flow_lcm(run):
    """Steps to the denoised sample and back up with fresh noise, on the flow's own path."""
    path, x = [run.x], run.x
    for sigma, after in zip(run.sigmas, run.sigmas[1:]):
        x = (1 - after) * run.toy(x, sigma)
        x = x + after * run.toy.noise(sigma, after) if after else x
        path.append(x)
    return path


def transcription(case):
    """Returns the transcription of a class, with the options from its keys."""
    name, get = case.name, case.get
    clip = None
    if get("thresholding"):
        ratio, most = get("dynamic_thresholding_ratio", 0.995), get("sample_max_value", 1.0)
        clip = lambda denoised: multistep.threshold(denoised, ratio, most)  # noqa: E731
    elif get("clip_sample", name in ("DDIM", "DDPM")):
        bound = get("clip_sample_range", 1.0)
        clip = lambda denoised: np.clip(denoised, -bound, bound)  # noqa: E731

    def clipping(inner):
        """Clips the denoised sample before the sampler sees it."""
        if clip is None:
            return inner

        def outer(run):
            toy = run.toy

            class Clipped:
                noise = toy.noise

                def __call__(self, x, sigma):
                    return clip(toy(x, sigma))

            run.toy = Clipped()
            try:
                return inner(run)
            finally:
                run.toy = toy

        return outer

    if name in ("EulerDiscrete", "EDMEuler"):
        return suite.plain(ode.euler)
    if name == "FlowMatchEulerDiscrete":
        return flow_lcm if get("stochastic_sampling") else suite.plain(ode.euler)
    if name == "FlowMatchLCM":
        return flow_lcm
    if name in ("HeunDiscrete", "FlowMatchHeunDiscrete"):
        return clipping(suite.plain(ode.heun))
    if name == "LMSDiscrete":
        return suite.plain(ode.lms)
    if name == "KDPM2Discrete":
        return suite.plain(ode.dpm_2)
    if name == "KDPM2AncestralDiscrete":
        return suite.noisy(sde.dpm2_ancestral)
    if name == "EulerAncestralDiscrete":
        return suite.noisy(sde.euler_ancestral)
    if name == "DPMSolverSDE":
        return suite.noisy(sde.dpmpp_sde)
    if name == "DDIM":
        return suite.ddim(one=get("set_alpha_to_one", True), eta=case.eta or 0.0, clip=clip)
    if name == "DDPM":
        return clipping(suite.ddpm(variance=get("variance_type", "fixed_small").removesuffix("_log")))
    if name == "PNDM":
        return suite.pndm(get("skip_prk_steps", False), one=get("set_alpha_to_one", False))
    if name == "LCM":
        return clipping(suite.lcm(timestep_scaling=get("timestep_scaling", 10.0)))
    if name == "TCD":
        return suite.tcd(0.3 if case.eta is None else case.eta)
    order, heun = get("solver_order", 2), get("solver_type") == "heun"
    kind = get("algorithm_type", "dpmsolver++")
    if name in ("DPMSolverMultistep", "EDMDPMSolverMultistep"):
        ends = {"lower": get("lower_order_final", True), "euler": get("euler_at_final", False)}
        if kind.startswith("sde"):
            form = "heun" if heun else "midpoint"
            return clipping(suite.dpm_sde(order, algorithm=kind, solver=form, **ends))
        return clipping(suite.dpm(order, noise=kind == "dpmsolver", heun=heun, **ends))
    if name == "DPMSolverSinglestep":
        options = {"stochastic": kind.startswith("sde"), "noise": kind == "dpmsolver", "heun": heun}
        return clipping(suite.singlestep(order, get("lower_order_final", False), **options))
    if name == "DEISMultistep":
        return clipping(suite.deis(order, get("lower_order_final", True)))
    if name == "UniPCMultistep":
        options = {"order": order, "bh1": get("solver_type") == "bh1", "noise": not get("predict_x0", True)}
        options |= {"lower_order_final": get("lower_order_final", True), "disable": tuple(get("disable_corrector", ()))}
        return clipping(suite.plain(multistep.unipc, **options))
    assert name == "SASolver", name
    options = {"predictor": get("predictor_order", 2), "corrector": get("corrector_order", 2)}
    options["prediction"] = get("algorithm_type", "data_prediction")
    return clipping(suite.sa(lower_order_final=get("lower_order_final", True), **options))


# Cases where float32 inside a class leaves fewer digits than 1e-4: the noise of a sample at
# sigma 999.
LOOSE = {"DEISMultistep flow": 2e-4}


def write(folder, versions):
    import diffusers
    from safetensors.numpy import save_file

    warnings.simplefilter("ignore")
    diffusers.logging.set_verbosity_error()
    lines, tensors, worst, seen = [], defaultdict(list), {}, set()
    for name, keys, counts, eta in cases():
        case = Case(name, keys, eta)
        said = json.dumps([case.config, counts, eta])
        if said in seen:
            continue
        seen.add(said)
        error, calls = 0.0, []
        for steps in counts:
            where = f"{name} {keys} {steps} {eta}"
            run = case.run(steps)
            expected = run.transcribed()
            states = run.states()
            assert all(np.isfinite(x).all() for x in states), where
            off = max(distance(a, b) for a, b in zip(states, expected, strict=True))
            loose = LOOSE.get(f"{name} flow" if case.flow else name, 1e-4)
            assert off <= loose, f"{where}: the transcription is {off:.1e} away"
            error = max(error, off)
            tensors["states"] += states
            tensors["sigmas"] += run.sigmas
            tensors["timesteps"] += run.told
            calls.append(len(run.told))
            tensors["initial_scales"].append(run.initial_scale)
        line = {"config": case.config, "steps": counts, "calls": calls, "transcription": float(f"{error:.1e}")}
        lines.append(line if eta is None else {**line, "eta": eta})
        worst[name] = max(worst.get(name, 0.0), error)

    refused = []
    for what, name, keys, steps in refusals():
        case = Case(name, keys)
        try:
            run = case.run(steps)
            run.toy = Toy(case.prediction, lambda sigma: 0.0)
            finite = all(np.isfinite(x).all() for x in run.states())
            says = None if finite else "not finite"
        except Exception as problem:  # noqa: BLE001 - whatever it says is what is listed
            says = f"{type(problem).__name__}: {str(problem)[:100]}"
        if says is not None:
            refused.append({"name": what, "config": case.config, "steps": steps, "diffusers": says})

    save_file({key: np.asarray(values, np.float32) for key, values in tensors.items()}, folder / "classes.safetensors")
    rows = {"cases": lines, "refused": refused}
    parts = [f'"{key}": [\n' + ",\n".join(json.dumps(row) for row in values) + "\n]" for key, values in rows.items()]
    (folder / "classes.json").write_text("{" + f'"versions": {json.dumps(versions)},\n' + ",\n".join(parts) + "}\n")
    print(f"{len(lines)} cases of classes, {len(tensors['states'])} states, {len(refused)} refused")
    for name, error in worst.items():
        print(f"    {name:25} {error:.1e}")
