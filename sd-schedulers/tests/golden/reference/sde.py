"""Stochastic samplers."""

import math

import numpy as np


def ancestral(sigma, to, eta=1.0):
    """Returns the sigma to go down to and the noise to add: down² + up² = to²."""
    up = min(to, eta * (to**2 * (sigma**2 - to**2) / sigma**2) ** 0.5)
    return (to**2 - up**2) ** 0.5, up


def add(x, factor, noise, sigma, to):
    return x + factor * noise(sigma, to) if factor != 0 else x


def euler_step(x, denoised, sigma, to):
    return denoised + to / sigma * (x - denoised)


def euler_ancestral(model, x, sigmas, eta=1.0, s_noise=1.0, noise=None):
    """The ancestral sampling of arXiv 2006.11239 with Euler steps."""
    path = [x]
    for sigma, to in zip(sigmas, sigmas[1:]):
        down, up = ancestral(sigma, to, eta)
        x = add(euler_step(x, model(x, sigma), sigma, down), s_noise * up, noise, sigma, to)
        path.append(x)
    return path


def euler_ancestral_flow(model, x, sigmas, eta=1.0, s_noise=1.0, noise=None):
    """Ancestral Euler for flow models in their own scaling, x = (1 - sigma) clean + sigma noise."""
    path = [x]
    for sigma, to in zip(sigmas, sigmas[1:]):
        denoised = model(x, sigma)
        if to == 0:
            x = denoised
        else:
            down = to * (1 + (to / sigma - 1) * eta)
            keep = (1 - to) / (1 - down)
            x = keep * euler_step(x, denoised, sigma, down)
            x = add(x, s_noise * math.sqrt(max(0.0, to**2 - (keep * down) ** 2)), noise, sigma, to)
        path.append(x)
    return path


def euler_cfg_pp(model, x, sigmas, eta=0.0, s_noise=1.0, noise=None):
    """CFG++ (arXiv 2406.08070). `model` returns the guided and the unconditional denoised sample,
    and the noise is the latter's."""
    path = [x]
    for sigma, to in zip(sigmas, sigmas[1:]):
        down, up = ancestral(sigma, to, eta)
        guided, unconditional = model(x, sigma)
        x = add(guided + down / sigma * (x - unconditional), s_noise * up, noise, sigma, to)
        path.append(x)
    return path


def dpm2_ancestral(model, x, sigmas, eta=1.0, s_noise=1.0, noise=None):
    """DPM-Solver-2 (algorithm 1 of arXiv 2206.00927, r = 1/2 in log sigma) down, then noise back
    up."""
    path = [x]
    for sigma, to in zip(sigmas, sigmas[1:]):
        down, up = ancestral(sigma, to, eta)
        denoised = model(x, sigma)
        if down == 0:
            x = denoised
        else:
            mid = (sigma * down) ** 0.5
            x_mid = euler_step(x, denoised, sigma, mid)
            x = x + (x_mid - model.between(x_mid, mid)) / mid * (down - sigma)
            x = add(x, s_noise * up, noise, sigma, to)
        path.append(x)
    return path


def dpmpp_2s_ancestral(model, x, sigmas, eta=1.0, s_noise=1.0, noise=None):
    """DPM-Solver++(2S) (algorithm 1 of arXiv 2211.01095, r = 1/2), then noise. The second stage
    uses only its own D."""
    path = [x]
    for sigma, to in zip(sigmas, sigmas[1:]):
        down, up = ancestral(sigma, to, eta)
        denoised = model(x, sigma)
        if down > 0:
            mid = (sigma * down) ** 0.5
            denoised = model(euler_step(x, denoised, sigma, mid), mid)
        x = add(euler_step(x, denoised, sigma, down), s_noise * up, noise, sigma, to)
        path.append(x)
    return path


def dpmpp_sde(model, x, sigmas, eta=1.0, s_noise=1.0, r=0.5, noise=None):
    """DPM-Solver++ SDE, single step. Both stages start at sigma, and so do both draws."""
    path = [x]
    for sigma, to in zip(sigmas, sigmas[1:]):
        denoised = model(x, sigma)
        if to == 0:
            x = denoised
        else:
            mid = sigma ** (1 - r) * to**r
            down, up = ancestral(sigma, mid, eta)
            x_mid = add(euler_step(x, denoised, sigma, down), s_noise * up, noise, sigma, mid)
            denoised = denoised + (model(x_mid, mid) - denoised) / (2 * r)
            down, up = ancestral(sigma, to, eta)
            x = add(euler_step(x, denoised, sigma, down), s_noise * up, noise, sigma, to)
        path.append(x)
    return path


def dpmpp_2m_sde(model, x, sigmas, eta=1.0, s_noise=1.0, solver="midpoint", noise=None):
    """SDE-DPM-Solver++(2M): equation 18 of arXiv 2211.01095 for eta = 1."""
    path, old = [x], None
    for sigma, to in zip(sigmas, sigmas[1:]):
        denoised = model(x, sigma)
        if to == 0:
            x = denoised
        else:
            h = math.log(sigma / to)
            k = h * (1 + eta)
            x = math.exp(-k) * x - math.expm1(-k) * denoised
            if old is not None:
                slope = (denoised - old[0]) * h / old[1]
                x = x + slope * (-0.5 * math.expm1(-k) if solver == "midpoint" else 1 + math.expm1(-k) / k)
            x = add(x, s_noise * to * math.sqrt(-math.expm1(-2 * eta * h)), noise, sigma, to)
            old = denoised, h
        path.append(x)
    return path


def dpmpp_3m_sde(model, x, sigmas, eta=1.0, s_noise=1.0, noise=None):
    """The third-order multistep of arXiv 2211.01095 (appendix), with the SDE's exponent (1 + eta)
    h."""
    path, old = [x], []
    for sigma, to in zip(sigmas, sigmas[1:]):
        denoised = model(x, sigma)
        if to == 0:
            x = denoised
        else:
            h = math.log(sigma / to)
            k = h * (1 + eta)
            x = math.exp(-k) * x - math.expm1(-k) * denoised
            phi_2 = 1 + math.expm1(-k) / k
            if len(old) == 1:
                ((d1, h1),) = old
                x = x + phi_2 * (denoised - d1) * h / h1
            elif len(old) == 2:
                (d1, h1), (d2, h2) = old
                near, far = (denoised - d1) * h / h1, (d1 - d2) * h / h2
                curve = (near - far) * h / (h1 + h2)
                x = x + phi_2 * (near + curve * h1 / h) - (phi_2 / k - 0.5) * curve
            x = add(x, s_noise * to * math.sqrt(-math.expm1(-2 * eta * h)), noise, sigma, to)
            old = [(denoised, h)] + old[:1]
        path.append(x)
    return path


def dpm_multistep_sde(
    model, x, sigmas, orders, algorithm="sde-dpmsolver++", solver="midpoint", third="diffusers", noise=None
):
    """DPM-Solver++ and DPM-Solver for the reverse SDE, multistep: section 5 of arXiv 2211.01095.

    `orders`: the order of each step. `third`: how order 3 weighs the curvature, "diffusers" (0.42.1
    has a wrong sign) or "exact", the polynomial's integral.
    """
    path, old = [x], []
    for p, sigma, to in zip(orders, sigmas, sigmas[1:]):
        m = model(x, sigma)
        h = math.log(sigma / to) if to > 0 else math.inf
        if h == 0:  # the last step to sigma_min, from a ladder that ends at sigma_min already
            path.append(x)
            continue
        if algorithm == "sde-dpmsolver":
            m = (x - m) / sigma
        old = [(m, h)] + old[:2]
        near = curve = 0
        if p >= 2:
            near = (m - old[1][0]) * h / old[1][1]
        if p == 3:
            far = (old[1][0] - old[2][0]) * h / old[2][1]
            curve = (near - far) * h / (old[1][1] + old[2][1])
            near = near + curve * old[1][1] / h
        if algorithm == "sde-dpmsolver":
            x = x - 2 * (sigma - to) * m
            if p == 2:
                x = x - ((sigma - to) if solver == "midpoint" else 2 * ((sigma - to) / h - to)) * near
            x = add(x, math.sqrt(sigma**2 - to**2), noise, sigma, to)
        else:
            x = math.exp(-2 * h) * x - math.expm1(-2 * h) * m
            if p == 2 and solver == "midpoint":
                x = x - 0.5 * math.expm1(-2 * h) * near
            elif p >= 2:
                phi_2 = 1 + math.expm1(-2 * h) / (2 * h)
                bend = {"diffusers": -0.5 - phi_2 / (2 * h), "exact": 1 - phi_2 / h}[third]
                x = x + phi_2 * near + (bend * curve if p == 3 else 0)
            x = add(x, to * math.sqrt(-math.expm1(-2 * h)), noise, sigma, to)
        path.append(x)
    return path


def ddim(model, x, sigmas, targets=None, eta=0.0, clip=None, reclip=False, both=False, flow=False, noise=None):
    """DDIM: equations 12 and 16 of arXiv 2010.02502.

    `targets`: the sigma at which each step ends, if it is not the next rung's. `clip(denoised)`
    clips the denoised sample. `reclip`: the noise in x is computed from the clipped sample. `both`:
    CFG++ (arXiv 2406.08070), where `model` returns the guided and the unconditional sample, and the
    noise is computed from the latter. `flow`: x belongs to a flow model in the variance-exploding
    scaling.
    """
    path = [x]
    for i, sigma in enumerate(sigmas[:-1]):
        to = sigmas[i + 1] if targets is None else targets[i]
        denoised = model(x, sigma)
        denoised, clean = denoised if both else (denoised, denoised)
        direction = (x - clean) / sigma
        if clip is not None:
            denoised = clip(denoised)
            direction = (x - denoised) / sigma if reclip else direction
        up = eta * to * math.sqrt(max(0.0, 1 - (to / sigma) ** 2))
        x = add(denoised + math.sqrt(to**2 - up**2) * direction, up, noise, sigma, to)
        # x is passed on in the scaling of the training.
        label = (lambda s: 1 + s) if flow else (lambda s: math.hypot(1, s))
        x = x * label(sigmas[i + 1]) / label(to)
        path.append(x)
    return path


def ddpm(model, x, sigmas, variance="fixed_small", last_is_zero=False, noise=None):
    """DDPM: equation 7 of arXiv 2006.11239. `last_is_zero`: the last timestep is 0, where no noise
    is added."""
    path, n = [x], len(sigmas) - 1
    for i, (sigma, to) in enumerate(zip(sigmas, sigmas[1:])):
        denoised = model(x, sigma)
        x = denoised + (to / sigma) ** 2 * (x - denoised)
        up = math.sqrt(sigma**2 - to**2)
        up *= to / sigma if variance == "fixed_small" else math.hypot(1, to) / math.hypot(1, sigma)
        x = add(x, 0 if last_is_zero and i == n - 1 else up, noise, sigma, to)
        path.append(x)
    return path


def lcm(model, x, sigmas, timesteps, timestep_scaling=10.0, boundary="preserving", sigma_data=0.5, noise=None):
    """LCM: algorithm 2 of arXiv 2310.04378.

    `boundary`: the boundary scalings apply to x in the variance-preserving scaling ("preserving",
    diffusers) or to x as it is ("exploding", WebUI), or there are none (None).
    """
    path = [x]
    for sigma, to, t in zip(sigmas, sigmas[1:], timesteps):
        scaled = t * timestep_scaling
        skip = sigma_data**2 / (scaled**2 + sigma_data**2)
        out = scaled / math.hypot(scaled, sigma_data)
        if boundary is None:
            skip, out = 0.0, 1.0
        elif boundary == "preserving":
            skip /= math.hypot(1, sigma)
        x = add(out * model(x, sigma) + skip * x, to, noise, sigma, to)
        path.append(x)
    return path


def tcd(model, x, sigmas, between, flow=False, noise=None):
    """TCD: algorithm 4 of arXiv 2402.19159 (strategic stochastic sampling).

    `between`: the sigma at timestep floor((1 - gamma) t_next), below the next rung's, at which the
    deterministic part of each step ends. The last one is above the end at 0, and its x keeps its
    value in the scaling of the training (`flow`: the scaling of a flow model).
    """
    path = [x]
    for sigma, to, s in zip(sigmas, sigmas[1:], between):
        x = euler_step(x, model(x, sigma), sigma, s)
        if s > to:
            x = x * ((1 + to) / (1 + s) if flow else math.hypot(1, to) / math.hypot(1, s))
        else:
            x = add(x, math.sqrt(max(0.0, to**2 - s**2)), noise, sigma, to)
        path.append(x)
    return path


def lagrange_integrals(kappa, h, nodes):
    """Returns kappa times the integral over u from -h to 0 of exp(kappa u) times each Lagrange
    polynomial on `nodes`."""
    powers = [-math.expm1(-kappa * h)]
    for j in range(1, len(nodes)):
        powers.append(-((-h) ** j) * math.exp(-kappa * h) - j / kappa * powers[-1])
    weights = []
    for i, node in enumerate(nodes):
        others = nodes[:i] + nodes[i + 1 :]
        polynomial = np.poly(others) / np.prod([node - other for other in others]) if others else np.ones(1)
        weights.append(float(sum(c * m for c, m in zip(polynomial[::-1], powers))))
    return weights


def sa_weights(kappa, h, nodes, prediction):
    """Returns the weights of the outputs. `nodes`: log-SNR/2 of the outputs, newest first, minus
    the target's, from -h (or 0) down."""
    if prediction == "data_prediction" and len(nodes) == 2:
        # The simplified second order of the authors' code: kappa h² / 2 replaces the slope's exact
        # weight.
        slope = 0.5 * kappa * h**2 / (nodes[0] - nodes[1])
        first, second = (slope, -slope)
        total = -math.expm1(-kappa * h)
        return [total + first, second] if nodes[0] < 0 else [first, total + second]
    if prediction == "data_prediction":
        return lagrange_integrals(kappa, h, nodes)
    return lagrange_integrals(-1.0, h, nodes)


def sa_solver(
    model, x, sigmas, tau, predictor=2, corrector=2, prediction="data_prediction", lower_order_final=True, again=False,
    noise=None,
):  # fmt: skip
    """SA-Solver: algorithm 1 of arXiv 2309.05019. `tau[i]`: the stochasticity of the step from rung
    i.

    With corrector 0, there is no correction. The state at a rung is the predicted one, and its
    correction enters the next step. `again`: the model is also called with the corrected state.
    """
    path, n = [x], len(sigmas) - 1
    lam = [-math.log(s) if s > 0 else math.inf for s in sigmas]
    outputs, last = [], None

    def output(x, i):
        m = model(x, sigmas[i])
        return m, m if prediction == "data_prediction" else (x - m) / sigmas[i]

    def update(x, i, order, new, z):
        """Makes the step from rung i to i + 1. `new`: with the output at i + 1 (the corrector)."""
        kappa, h = 1 + tau[i] ** 2, lam[i + 1] - lam[i]
        start = i + 1 if new else i
        nodes = [lam[start - j] - lam[i + 1] for j in range(order)]
        weights = sa_weights(kappa, h, nodes, prediction) if h > 0 else [0.0] * order
        total = sum(w * m for w, m in zip(weights, outputs))
        if prediction == "data_prediction":
            x = math.exp(-kappa * h) * x + total
            factor = sigmas[i + 1] * math.sqrt(-math.expm1(-2 * tau[i] ** 2 * h))
        else:
            x = x + kappa * sigmas[i + 1] * total
            factor = tau[i] * math.sqrt(sigmas[i] ** 2 - sigmas[i + 1] ** 2)
        return x + factor * z if factor != 0 else x

    corrector_order = 0
    for i in range(n):
        denoised, m = output(x, i)
        outputs = ([m] + outputs)[: max(predictor, corrector) + 1]
        if i > 0 and corrector > 0:
            x = update(last[0], i - 1, corrector_order, True, last[1])
            if again:
                denoised, outputs[0] = output(x, i)
        if sigmas[i + 1] == 0:
            path.append(denoised)
            break
        z = 0.0
        if tau[i] != 0 and lam[i + 1] > lam[i]:
            z = noise(sigmas[i], sigmas[i + 1])
        left = n - i if lower_order_final else n
        order = min(predictor, left, i + 1)
        corrector_order = min(corrector, left + 1, i + 2)
        last = x, z
        x = update(x, i, order, False, z)
        path.append(x)
    return path


ER_SCALES = {
    "ode": lambda s: s,
    "reverse_sde": lambda s: s**2,
    "sde_1": lambda s: s * (np.exp(-1 / s) + 10),
    "sde_2": lambda s: s**1.5,
    "sde_3": lambda s: s**2.5,
    "sde_4": lambda s: s**0.9 * np.log10(1 + 100 * s**1.5),
    "sde_5": lambda s: s * (np.exp(s**0.3) + 10),
}


def er_sde(model, x, sigmas, order=3, scale="sde_5", points=100, threshold=1e-6, s_noise=1.0, noise=None):
    """ER-SDE-Solver: algorithms 1 to 3 of arXiv 2309.06169. `points`: the points of the left Riemann
    sums. None: exact integrals."""
    path, old, scale = [x], [], ER_SCALES[scale]
    for i, (sigma, to) in enumerate(zip(sigmas, sigmas[1:])):
        denoised = model(x, sigma)
        if to == 0:
            path.append(denoised)
            break
        r = scale(to) / scale(sigma)
        x = r * x + (1 - r) * denoised
        p = min(order, len(old) + 1)
        first = None
        if p >= 2:
            if points is None:
                u, w = np.polynomial.legendre.leggauss(64)
                half = math.log(sigma / to) / 2
                u = to * np.exp(half * (u + 1))
                w = w * half * u
            else:
                u, w = to + np.arange(points) / points * (sigma - to), (sigma - to) / points
            first = (denoised - old[0][0]) / (sigma - sigmas[i - 1])
            x = x + (to - sigma + scale(to) * np.sum(w / scale(u))) * first
        if p == 3:
            second = 2 * (first - old[0][1]) / (sigma - sigmas[i - 2])
            x = x + ((to - sigma) ** 2 / 2 + scale(to) * np.sum(w * (u - sigma) / scale(u))) * second
        old = [(denoised, first)] + old[:1]
        variance = to**2 - (sigma * r) ** 2
        x = add(x, s_noise * math.sqrt(variance) if variance >= threshold else 0, noise, sigma, to)
        path.append(x)
    return path
