"""Deterministic samplers of the diffusers family."""

import math

import numpy as np

from .ode import lms_weights

ADAMS_BASHFORTH = [[1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]


def threshold(denoised, ratio=0.995, maximum=1.0):
    """Dynamic thresholding of one image (section 2.3 of arXiv 2205.11487), with the threshold
    clamped to 1 and `maximum`."""
    bound = min(max(np.quantile(np.abs(denoised), ratio), 1.0), maximum)
    return np.clip(denoised, -bound, bound) / bound


def relabel(x, sigma, other):
    """Returns the x that diffusers has if it treats an x at `sigma` as an x at `other`. Both are
    equal in the VP scaling."""
    return x * math.sqrt((1 + other**2) / (1 + sigma**2))


def published_weights(nodes, to):
    """Returns what `ipndm_v` of zju-pi/diff-sampler (diff-solvers-main/solvers.py) and ComfyUI
    compute as the means of the Lagrange polynomials of three or four nodes. They are not those
    means."""
    h, h1, h2 = to - nodes[0], nodes[0] - nodes[1], nodes[1] - nodes[2]
    third = (1 - h / (3 * (h + h1)) * (h * (h + h1)) / (h1 * (h1 + h2))) / 2
    weights = [(2 + h / h1) / 2 + third, -(h / h1) / 2 - (1 + h1 / h2) * third, third * h1 / h2]
    if len(nodes) == 4:
        h3 = nodes[2] - nodes[3]
        fourth = (1 - h / (3 * (h + h1))) / 2 + (1 - h / (2 * (h + h1))) * h / (6 * (h + h1 + h2))
        fourth *= (h * (h + h1) * (h + h1 + h2)) / (h1 * (h1 + h2) * (h1 + h2 + h3))
        far = h1 * (h1 + h2) / (h2 * (h2 + h3))
        weights[0] += fourth
        weights[1] -= (1 + h1 / h2 + far) * fourth
        weights[2] += (h1 / h2 + far * (1 + h2 / h3)) * fourth
        weights.append(-fourth * far * h1 / h2)
    return weights


def ipndm(model, x, sigmas, order=4, weights="even", denoise_last=True):
    """Improved PNDM: Adams-Bashforth on the noise, lower orders first. Section 3.1 and appendix of
    arXiv 2204.13902.

    `weights`: the weights for "even" steps, for the actual "variable" steps, or the "published"
    weights of `ipndm_v`.
    """
    path, noises = [x], []
    for i, (sigma, end) in enumerate(zip(sigmas, sigmas[1:])):
        denoised = model(x, sigma)
        noises = [(x - denoised) / sigma] + noises[: order - 1]
        nodes = [sigmas[i - j] for j in range(len(noises))]
        if end == 0 and denoise_last:
            x = denoised
        else:
            if weights == "even":
                means = ADAMS_BASHFORTH[len(noises) - 1]
            elif weights == "published" and len(noises) > 2:
                means = published_weights(nodes, end)
            else:
                means = [w / (end - sigma) for w in lms_weights(nodes, sigma, end)]
            x = x + (end - sigma) * sum(c * e for c, e in zip(means, noises))
        path.append(x)
    return path


def pndm(model, x, times, sigma_at, stride, half, skip_prk=True, average="epsilon", label=None):
    """PNDM, algorithm 2 of arXiv 2202.09778.

    It makes 3 pseudo Runge-Kutta steps, or (`skip_prk`) one improved Euler step, then pseudo
    Adams-Bashforth steps. A step from time t ends at t - stride. `sigma_at(t)` is the last sigma
    for t below 0. `average`: what is averaged over the calls, "epsilon" (the paper) or "v"
    (diffusers with v_prediction). `label`: the sigma that the last state is assumed to have.
    """
    path, outputs = [x], []
    last = times[-1] - stride
    rungs = [sigma_at(t) for t in times] + [sigma_at(last) if label is None else label]

    def output(x, t):
        sigma = sigma_at(t)
        denoised = model(x, sigma)
        noise = (x - denoised) / sigma
        return noise if average == "epsilon" else (noise - sigma * denoised) / math.sqrt(1 + sigma**2)

    def transfer(x, mean, t, end):
        sigma, end = sigma_at(t), sigma_at(end)
        if average == "v":
            mean = (mean + sigma * x / math.sqrt(1 + sigma**2)) / math.sqrt(1 + sigma**2)
        return x + (end - sigma) * mean

    for i, t in enumerate(times):
        e1 = output(x, t)
        outputs = [e1] + outputs[:3]
        if not skip_prk and i < 3:
            after = times[i + 1]
            middle = after + half
            guess = relabel(transfer(x, e1, t, t - half), sigma_at(t - half), sigma_at(middle))
            e2 = output(guess, middle)
            e3 = output(transfer(x, e2, t, middle), middle)
            e4 = output(transfer(x, e3, t, after), after)
            x, end = transfer(x, (e1 + 2 * e2 + 2 * e3 + e4) / 6, t, after), after
        elif skip_prk and i == 0 and len(times) > 1:
            after = times[1]
            guess = relabel(transfer(x, e1, t, t - stride), sigma_at(t - stride), sigma_at(after))
            e2 = output(guess, after)
            x = relabel(x, sigma_at(t), sigma_at(after + stride))
            x, end = transfer(x, (e1 + e2) / 2, after + stride, after), after
        else:
            mean = sum(c * e for c, e in zip(ADAMS_BASHFORTH[len(outputs) - 1], outputs))
            x, end = transfer(x, mean, t, t - stride), t - stride
        x = relabel(x, sigma_at(end), rungs[i + 1])
        path.append(x)
    return path


def multistep_orders(steps, order, lower_order_final=True, last_is_first=False, short=15):
    """Returns the order of each step of diffusers' DPM-Solver and DEIS. It rises at the start and
    falls at the end of short runs."""
    orders = [min(order, i + 1) for i in range(steps)]
    if lower_order_final and steps < short:
        orders = [min(o, 2) if i == steps - 2 else o for i, o in enumerate(orders)]
    if last_is_first or (lower_order_final and steps < short):
        orders[-1] = 1
    return orders


def deis(model, x, sigmas, orders):
    """DEIS, log-rho Adams-Bashforth: equation 15 of arXiv 2204.13902, with the noise as a
    polynomial in log sigma."""
    path, noises = [x], []

    def integral(k, nodes, sigma):
        """Returns the antiderivative of the k-th Lagrange polynomial over the log sigmas `nodes`,
        at sigma. It is a polynomial in log sigma."""
        if sigma == 0:
            return 0.0
        others = [n for j, n in enumerate(nodes) if j != k]
        scale = math.prod(nodes[k] - n for n in others)
        poly = np.poly1d(np.poly(others)) if others else np.poly1d([1.0])
        total, sign = 0.0, 1.0
        while True:  # the integral of p(log s) ds is s (p - p' + p'' - ...)(log s)
            total += sign * poly(math.log(sigma))
            if poly.order == 0:
                return sigma * total / scale
            poly, sign = poly.deriv(), -sign

    for i, (sigma, end) in enumerate(zip(sigmas, sigmas[1:])):
        noises = [(x - model(x, sigma)) / sigma] + noises[:2]
        nodes = [math.log(s) for s in sigmas[i::-1][: orders[i]]]
        change = [integral(k, nodes, end) - integral(k, nodes, sigma) for k in range(len(nodes))]
        x = x + sum(c * e for c, e in zip(change, noises))
        path.append(x)
    return path


def deis_time(model, x, sigmas, order=3):
    """DEIS, t Adams-Bashforth ("tAB"), as `tab` in zju-pi/diff-sampler.

    The noise is a polynomial in the time of the process with linear betas that goes from sigma
    0.002 at time 0.001 to sigma 80 at time 1. A step to sigma 0 ends at the denoised sample.
    """
    path, noises = [x], []
    low, high = math.log1p(0.002**2), math.log1p(80.0**2)
    slope = 2 * (low / 1e-3 - high) / (1e-3 - 1)
    start = high - slope / 2
    points, weights = np.polynomial.legendre.leggauss(16)

    def time(sigma):
        return (np.sqrt(start**2 + 2 * slope * np.log1p(sigma**2)) - start) / slope

    for i, (sigma, end) in enumerate(zip(sigmas, sigmas[1:])):
        denoised = model(x, sigma)
        noises = [(x - denoised) / sigma] + noises[: order - 1]
        if end == 0:
            x = denoised
        else:
            nodes = [time(sigmas[i - j]) for j in range(len(noises))]
            panel = math.log(end / sigma) / 32
            # 32 panels of Gauss' rule over log sigma. dsigma is sigma dlog.
            logs = np.add.outer(np.arange(32), (points + 1) / 2).ravel() * panel + math.log(sigma)
            measure = np.tile(weights / 2, 32) * panel * np.exp(logs)
            at = time(np.exp(logs))
            for k, e in enumerate(noises):
                others = [n for j, n in enumerate(nodes) if j != k]
                lagrange = np.prod([(at - n) / (nodes[k] - n) for n in others], axis=0) if others else np.ones_like(at)
                x = x + np.sum(measure * lagrange) * e
        path.append(x)
    return path


def _exponential(x, sigma, end, terms, noise):
    """Makes one exponential step from sigma to end, with h = ln(sigma / end).

    The model value is m + d1 u + d2 u² / 2 with terms = m, d1, d2 (or fewer), where u goes from 0
    to 1 evenly in log sigma. `noise`: m is the noise rather than the denoised sample.
    """
    if sigma == end:
        return x
    if end == 0:  # h is infinite; only m can be used
        return terms[0]
    h = math.log(sigma / end)
    if noise:  # x' = x - end * integral of h exp(h (1 - u)) m(u) du
        weights = math.expm1(h), math.expm1(h) / h - 1, (math.expm1(h) - h) / h**2 - 1 / 2
        return x - end * sum(w * term for w, term in zip(weights, terms))
    # x' = end / sigma x + integral of h exp(-h (1 - u)) m(u) du
    weights = -math.expm1(-h), math.expm1(-h) / h + 1, 1 / 2 - (math.expm1(-h) + h) / h**2
    return end / sigma * x + sum(w * term for w, term in zip(weights, terms))


def _exponential_sde(x, sigma, end, terms, wrong_sign, z):
    """Does the same for the denoised sample and the reverse SDE, which goes down twice as fast and
    up again by the noise `z`."""
    if sigma == end:
        return x
    if end == 0:
        return terms[0]
    h = math.log(sigma / end)
    phi_2 = 1 + math.expm1(-2 * h) / (2 * h)
    weights = -math.expm1(-2 * h), phi_2, (-0.5 if wrong_sign else 0.5) - phi_2 / (2 * h)
    x = math.exp(-2 * h) * x + sum(w * term for w, term in zip(weights, terms))
    return x + end * math.sqrt(-math.expm1(-2 * h)) * z(sigma, end)


def dpm_multistep(model, x, sigmas, orders, noise=False, heun=False, curvature=1.0):
    """DPM-Solver++ multistep, algorithm 2 of arXiv 2211.01095, or (`noise`) the same for
    DPM-Solver, arXiv 2206.00927.

    `heun`: the second-order term is integrated exactly, rather than in the midpoint form.
    `curvature`: 1 is the third-order term of the published code, and 2 is the term that makes the
    method third order.
    """
    path, history = [x], []
    for i, (sigma, end) in enumerate(zip(sigmas, sigmas[1:])):
        denoised = model(x, sigma)
        history = [(x - denoised) / sigma if noise else denoised] + history[:2]
        terms = history[:1]
        if orders[i] > 1 and end not in (0, sigma):
            h = math.log(sigma / end)
            r0 = math.log(sigmas[i - 1] / sigma) / h
            slope = (history[0] - history[1]) / r0
            terms = [history[0], slope] if heun else [history[0] + slope / 2]
        if orders[i] > 2 and end not in (0, sigma):
            r1 = math.log(sigmas[i - 2] / sigmas[i - 1]) / h
            bend = (slope - (history[1] - history[2]) / r1) / (r0 + r1)
            terms = [history[0], slope + r0 * bend, curvature * bend]
        x = denoised if end == 0 else _exponential(x, sigma, end, terms, noise)
        path.append(x)
    return path


def singlestep_orders(steps, order, lower_order_final=True, ends_at_zero=True):
    """Returns the order of each step of diffusers' singlestep DPM-Solver: groups 1, 2, .. order.
    The rest has lower orders."""
    lower_order_final = lower_order_final or steps % order != 0 or ends_at_zero
    if not lower_order_final or order == 1:
        orders = list(range(1, order + 1)) * (steps // order)
    elif order == 2:
        orders = [1, 2] * ((steps - 1) // 2) + ([1] if steps % 2 else [1, 1])
    else:
        orders = [1, 2, 3] * ((steps - 1) // 3)
        orders += {0: [1, 2, 1], 1: [1], 2: [1, 2]}[steps % 3]
        orders = orders[:steps]
    if ends_at_zero:
        orders[-1] = 1
    return orders


def dpm_singlestep(model, x, sigmas, orders, noise=False, heun=False, sde=None, third="diffusers"):
    """DPM-Solver singlestep, algorithms 1 and 2 of arXiv 2206.00927 (++: arXiv 2211.01095), with
    rungs as the intermediate points.

    Step i of order k goes from rung i + 1 - k to rung i + 1. `heun` is as in `dpm_multistep`.
    `sde`: the source of noise for the reverse SDE. `third` is as in `dpm_multistep_sde`.
    """
    path, values = [x], []
    for i, end in enumerate(sigmas[1:]):
        denoised = model(x, sigmas[i])
        values.append((x - denoised) / sigmas[i] if noise else denoised)
        k = orders[i]
        start = i + 1 - k
        sigma, m = sigmas[start], values[start]
        terms = [m]
        if k > 1:
            h = math.log(sigma / end)
            r0 = math.log(sigma / sigmas[i]) / h
            slope = (values[i] - m) / r0
            terms = [m, slope] if heun or k == 3 else [m + slope / 2]
        if k == 3 and heun:
            r1 = math.log(sigma / sigmas[i - 1]) / h
            early = (values[i - 1] - m) / r1
            terms = [m, (r0 * early - r1 * slope) / (r0 - r1), 2 * (slope - early) / (r0 - r1)]
        if sde is None:
            x = denoised if end == 0 else _exponential(path[start], sigma, end, terms, noise)
        else:
            x = _exponential_sde(path[start], sigma, end, terms, third == "diffusers", sde)
        path.append(x)
    return path


def unipc(model, x, sigmas, order=2, bh1=False, noise=False, lower_order_final=True, disable=()):
    """UniPC, algorithms 1 and 2 of arXiv 2302.04867.

    Its corrector reuses the model value of the next step's call. The steps in `disable` have no
    corrector, and neither has the last step. A step to sigma 0 ends at the denoised sample.
    """
    path, values = [x], []
    steps = len(sigmas) - 1

    def update(x, i, p, new):
        """Makes the step from rung i of order p. `new`: the model value at the rung where it ends,
        for the corrector."""
        sigma, end = sigmas[i], sigmas[i + 1]
        if sigma == end:
            return x
        h = math.log(sigma / end)
        hh = h if noise else -h
        base = x - end * math.expm1(h) * values[i] if noise else end / sigma * x - math.expm1(-h) * values[i]
        if new is None and p == 1:
            return base
        scale = hh if bh1 else math.expm1(hh)
        r = [math.log(sigma / sigmas[i - k]) / h for k in range(1, p)] + [1.0]
        d = [(values[i - k] - values[i]) / r[k - 1] for k in range(1, p)]
        b, phi = [], math.expm1(hh) / hh - 1
        for k in range(1, p + 1):
            b.append(phi * math.factorial(k) / scale)
            phi = phi / hh - 1 / math.factorial(k + 1)
        matrix = np.vander(r, increasing=True).T
        if new is not None:
            d.append(new - values[i])
            rho = [0.5] if p == 1 else np.linalg.solve(matrix, b)
        else:
            rho = [0.5] if p == 2 else np.linalg.solve(matrix[:-1, :-1], b[:-1])
        return base - (end if noise else 1) * scale * sum(c * v for c, v in zip(rho, d))

    before = None
    for i in range(steps):
        denoised = model(x, sigmas[i])
        value = (x - denoised) / sigmas[i] if noise else denoised
        if i > 0 and i - 1 not in disable:
            x = update(before, i - 1, p, value)
        values.append(value)
        p = min(order, i + 1, steps - i if lower_order_final else order)
        before = x
        x = denoised if sigmas[i + 1] == 0 else update(x, i, p, None)
        path.append(x)
    return path
