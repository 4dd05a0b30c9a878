"""Compares the transcriptions with the code of the papers' authors.

It covers samplers that neither k-diffusion nor diffusers has.

    python authors.py FOLDER

The folder has clones of these repositories under their names, each at its commit. A repository that
is missing is left out.

    cosmos-predict1                  github.com/nvidia-cosmos/cosmos-predict1 4ed35fa       RES multistep
    smalldiffusion                   github.com/yuanchenyang/smalldiffusion 7f607a8         gradient estimation
    CFGpp                            github.com/CFGpp-diffusion/CFGpp 8035352               CFG++
    diffusion_restart_sampling       github.com/Newbeeer/diffusion_restart_sampling 8cbcb07 restart
    ER-SDE-Solver                    github.com/QinpengCui/ER-SDE-Solver (no commit pinned) ER-SDE
    diff-sampler                     github.com/zju-pi/diff-sampler 3e34628                 iPNDM, variable step, DEIS over time

It writes no files. It prints the worst relative error over the last state and every state that the
model is called with, at 1 to 50 steps. All errors are below 1e-14, except where a docstring gives
another bound.
"""

import ast
import importlib.util
import json
import sys
import types
import typing
from math import inf, sqrt
from pathlib import Path

sys.dont_write_bytecode = True

import numpy as np  # noqa: E402
import torch  # noqa: E402

from reference import multistep, ode, sde  # noqa: E402
from reference.rungs import Conventions, Rungs, rungs, schedule  # noqa: E402
from reference.toy import STEPS, Pair, Toy, compare, output, start  # noqa: E402

LADDERS = {
    "epsilon": ("karras", "exponential", "normal"),
    "v": ("karras", "exponential", "normal"),
    "sample": ("karras", "exponential", "normal"),
    "flow": ("flow", {"flow": {"shift": {"by": 3.0}}}),
}


class Torch:
    """A toy model for PyTorch code: a batch of one in float64."""

    def __init__(self, toy):
        self.toy = toy

    @staticmethod
    def tensor(x):
        return torch.tensor(np.array(x), dtype=torch.float64)[None]

    def __call__(self, x, sigma, *_, **__):
        return self.tensor(self.toy(x[0].numpy(), float(torch.as_tensor(sigma).flatten()[0])))


def load(path, **stubs):
    """Loads a module from one file, without its package."""
    before = {name: sys.modules.get(name) for name in stubs}
    sys.modules.update(stubs)
    spec = importlib.util.spec_from_file_location(f"{path.stem}_alone", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, old in before.items():
        sys.modules.pop(name)
        if old is not None:
            sys.modules[name] = old
    return module


def functions(path, names, **known):
    """Loads functions or classes from a file whose imports may be missing."""
    source = ast.parse(path.read_text())
    kept = [node for node in source.body if getattr(node, "name", None) in names]
    source.body = kept
    exec(compile(source, str(path), "exec"), known)
    return known


def runs(predictions=tuple(LADDERS), counts=STEPS):
    """Yields two toy models, the rungs, the start and the name of every combination."""
    for prediction in predictions:
        for ladder in LADDERS[prediction]:
            for steps in counts:
                found = rungs(ladder, prediction == "flow", steps, Conventions(flow="flow"))
                toys = [Toy(prediction, found.timestep, found.exploding) for _ in range(2)]
                yield *toys, found.sigmas, start(found.sigmas[0]), f"{prediction} {json.dumps(ladder)} {steps}"


class Worst:
    def __init__(self, name):
        self.name, self.error, self.where = name, 0.0, ""

    def __enter__(self):
        return self

    def add(self, error, where):
        if error >= self.error:
            self.error, self.where = error, where

    def __exit__(self, kind, *_):
        if kind is None:
            print(f"{self.name:32} {self.error:.1e}  {self.where}")


def res(folder):
    sys.path.insert(0, str(folder))
    from cosmos_predict1.diffusion.functional.multi_step import order2_fn

    with Worst("RES multistep") as worst:
        for a, b, sigmas, x, where in runs():
            end = ode.res_multistep(a, x, sigmas)[-1]
            model, y, known = Torch(b), Torch.tensor(x), None
            for sigma, after in zip(sigmas[:-2], sigmas[1:-1]):
                sigma, after = torch.tensor([sigma]), torch.tensor([after])
                y, known = order2_fn(y, sigma, after, model(y, sigma), known)
            y = model(y, torch.tensor([sigmas[-2]]))
            worst.add(compare((a.asked, end), (b.asked, y[0].numpy())), where)


def gradient_estimation(folder):
    accelerate = types.ModuleType("accelerate")
    accelerate.Accelerator = lambda: types.SimpleNamespace(device="cpu")
    small = load(folder / "src/smalldiffusion/diffusion.py", accelerate=accelerate)
    with Worst("gradient estimation") as worst:
        for gamma in (1.0, 1.5, 2.0, 2.4):
            for a, b, sigmas, x, where in runs():
                end = ode.gradient_estimation(a, x, sigmas, gamma, denoise_last=False)[-1]
                model = Torch(b)
                model.eval = lambda: None
                model.rand_input = lambda count: torch.zeros(1, 8)
                model.predict_eps_cfg = lambda x, sigma, *_: (x - model(x, sigma)) / sigma  # noqa: B023
                *_, y = small.samples(model, torch.tensor(sigmas), gam=gamma, xt=Torch.tensor(x))
                worst.add(compare((a.asked, end), (b.asked, y[0].numpy())), f"gamma {gamma} {where}")


def cfg_pp(folder):
    """CFG++, in float64 instead of float16. Its sigmas are float32, so the error is 1e-7. It
    supports only epsilon and whole timesteps."""

    class Double:
        float16 = torch.float64

        def __getattr__(self, name):
            return getattr(torch, name)

        @staticmethod
        def autocast(**_):
            return lambda function: function

    source = ast.parse((folder / "latent_diffusion.py").read_text())
    source.body = [node for node in source.body if not isinstance(node, (ast.Import, ast.ImportFrom))]
    names = vars(typing) | {"torch": Double(), "tqdm": lambda steps, **_: steps}
    names |= {"DDIMScheduler": None, "StableDiffusionPipeline": None}
    exec(compile(source, "latent_diffusion.py", "exec"), names)
    table = schedule().sigmas
    with Worst("CFG++") as worst:
        for scale in (0.0, 0.2, 0.6, 1.0):
            for n in STEPS:
                sampler = names["EulerCFGppSolver"].__new__(names["EulerCFGppSolver"])
                sampler.total_alphas = torch.tensor(1 / (1 + table**2))
                sampler.log_sigmas = torch.tensor(np.log(table))
                sampler.scheduler = types.SimpleNamespace(timesteps=range(n))
                sampler.device, sampler.get_text_embed = "cpu", lambda **_: (None, None)
                sigmas = names["get_sigmas_karras"](n, torch.tensor(table[0]), torch.tensor(table[-1])).double().numpy()
                asked, told = [], []

                def predict(x, t, uc, c):
                    sigma = sigmas[len(asked)]  # noqa: B023
                    asked.append((sigma, x[0].numpy() * sqrt(1 + sigma**2)))  # noqa: B023
                    told.append(int(t))  # noqa: B023
                    return [torch.tensor(output(x[0].numpy(), int(t), shift))[None] for shift in (0.0, 1.0)]

                x, ends = start(sigmas[0]), []
                sampler.predict_noise = predict
                sampler.initialize_latent = lambda **_: torch.tensor(x)[None]  # noqa: B023
                sampler.decode = lambda z: ends.append(z) or z  # noqa: B023
                sampler.sample(scale)
                steps = iter(told)
                pair = Pair("epsilon", lambda sigma: next(steps))  # noqa: B023

                def guided(x, sigma):
                    conditional, unconditional = pair(x, sigma)  # noqa: B023
                    return unconditional + scale * (conditional - unconditional), unconditional  # noqa: B023

                end = sde.euler_cfg_pp(guided, x, list(sigmas))[-1]
                worst.add(compare((pair.asked, end), (asked, ends[0][0].numpy())), f"scale {scale} {n}")


def restart(folder):
    """Restart. The rungs of its segments are float32, so the error is 4e-6."""
    known = {"torch": torch, "np": np, "dist": types.SimpleNamespace(print0=lambda _: None)}
    sampler = functions(folder / "benchmarks/generate_restart.py", ["restart_sampler"], **known)["restart_sampler"]
    segments = [(19.35, 40.79, 4, 1), (1.09, 1.92, 3, 2), (0.06, 0.30, 3, 3)]
    info = {str(i): [n + 1, times, low, high] for i, (low, high, n, times) in enumerate(segments)}
    with Worst("restart") as worst:
        for prediction in ("epsilon", "v", "sample"):
            for n in (10, 25, 50):
                sigmas = np.append(ode.karras(n, 0.002, 80.0), 0)
                found = Rungs(sigmas, [schedule().timestep(s) for s in sigmas[:-1]])
                told = lambda sigma: float(schedule().timestep(sigma))  # noqa: E731
                a, x = Toy(prediction, told), start(found.sigmas[0])
                end = ode.restart(a, x, sigmas, segments, snap=False, s_noise=1.003, noise=a.noise)[-1][1]
                used = None
                for _ in range(2):  # the first run finds the draws of restarts, which another draw follows
                    b, events = Toy(prediction, told), []
                    model = Torch(b)

                    class Net:
                        img_channels, img_resolution, sigma_min, sigma_max = 1, 1, 0.0, inf

                        def round_sigma(self, sigma):
                            return sigma

                        def __call__(self, x, sigma, labels):
                            events.append("call")  # noqa: B023
                            return model(x, sigma)  # noqa: B023

                    def draw(x):
                        events.append("draw")  # noqa: B023
                        raised = used and used[events.count("draw") - 1]  # noqa: B023
                        return Torch.tensor(b.noise()) if raised else torch.zeros_like(x)  # noqa: B023

                    y = sampler(
                        Net(), Torch.tensor(x / sigmas[0]), randn_like=draw, num_steps=n, S_noise=1.003,
                        restart_info=json.dumps(info),
                    )  # fmt: skip
                    used = [after == "draw" for event, after in zip(events, events[1:]) if event == "draw"]
                worst.add(compare((a.asked, end), (b.asked, y[0].numpy())), f"{prediction} {n}")


def er_sde(folder):
    """ER-SDE. Its `np.sum` of a tensor is an error in current versions, and is replaced."""
    module = load(folder / "er_sde_solver.py")
    module.np = types.SimpleNamespace(sum=torch.sum, sqrt=torch.sqrt, exp=torch.exp, log10=torch.log10)
    solver = module.ER_SDE_Solver("ve", "x_start")
    for order, function in enumerate((solver.ve_1_order, solver.ve_2_order_taylor, solver.ve_3_order_taylor), 1):
        with Worst(f"ER-SDE {order}") as worst:
            for kind, scale in enumerate(sde.ER_SCALES, 1):
                for a, b, sigmas, x, where in runs(("epsilon",)):
                    end = sde.er_sde(a, x, sigmas, order, scale, noise=a.noise)[-1]
                    model = Torch(b)
                    module.torch.randn_like = lambda _: torch.tensor(a.drawn_after(len(b.asked)))  # noqa: B023
                    y = function(
                        lambda x, t: model(x[None], sigmas[int(t)])[0],  # noqa: B023
                        torch.tensor(x), torch.tensor(sigmas), range(len(sigmas) - 1),
                        lambda s: module.customized_func(s, kind),  # noqa: B023
                    )  # fmt: skip
                    worst.add(compare((a.asked, end), (b.asked, y.numpy())), f"{scale} {where}")


def diff_sampler(folder):
    """iPNDM and DEIS, on rungs that end above 0, as the authors' do.

    The coefficients of DEIS are sums over 10,000 points in float32, so the error is 1e-4.
    """
    solvers, utils = (folder / "diff-solvers-main" / name for name in ("solvers.py", "solver_utils.py"))
    names = ["ipndm_sampler", "ipndm_v_sampler", "deis_sampler"]
    known = {"torch": torch, "np": np, "get_denoised": lambda net, x, t, **_: net(x, t)}
    sigmas = []
    known["get_schedule"] = lambda *_, **__: torch.tensor(sigmas)
    found = functions(solvers, names, **known)
    deis = functions(utils, ["edm2t", "cal_poly", "t2alpha_fn", "cal_intergrand", "get_deis_coeff_list"], torch=torch, np=np)
    cases = [(f"ipndm {n}", "ipndm_sampler", lambda *a, n=n: multistep.ipndm(*a, order=n), {"max_order": n}) for n in (1, 2, 3, 4)]
    published = lambda *a, n: multistep.ipndm(*a, order=n, weights="published")  # noqa: E731
    cases += [(f"ipndm_v {n}", "ipndm_v_sampler", lambda *a, n=n: published(*a, n=n), {"max_order": n}) for n in (2, 3, 4)]
    cases += [(f"deis tab {n}", "deis_sampler", lambda *a, n=n: multistep.deis_time(*a, order=n), {"max_order": n}) for n in (2, 3)]
    for name, theirs, ours, options in cases:
        with Worst(name) as worst:
            for a, b, rung, x, where in runs(("epsilon", "v", "sample"), STEPS[1:]):
                sigmas[:] = rung[:-1]
                end = ours(a, x, sigmas)[-1]
                if theirs == "deis_sampler":
                    order = options["max_order"] - 1
                    options = {**options, "coeff_list": deis["get_deis_coeff_list"](torch.tensor(sigmas), order)}
                y = found[theirs](Torch(b), Torch.tensor(x / sigmas[0]), num_steps=len(sigmas), **options)
                worst.add(compare((a.asked, end), (b.asked, y[0].numpy())), where)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    torch.set_default_dtype(torch.float64)
    checks = {
        "cosmos-predict1": res,
        "smalldiffusion": gradient_estimation,
        "CFGpp": cfg_pp,
        "diffusion_restart_sampling": restart,
        "ER-SDE-Solver": er_sde,
        "diff-sampler": diff_sampler,
    }
    for name, check in checks.items():
        folder = Path(sys.argv[1]) / name
        if folder.is_dir():
            check(folder)
        else:
            print(f"{name}: no such folder")
