"""Deterministic samplers of the k-diffusion family, some with noise as an option."""

from math import atan, exp, expm1, inf, isfinite, log, sqrt

import numpy as np


def slope(x, sigma, denoised):
    """Returns dx / dsigma."""
    return (x - denoised) / sigma


def churn(x, sigma, steps, s_churn, s_tmin, s_tmax, s_noise, noise):
    """Lines 4 to 6 of algorithm 2 of arXiv 2206.00364: adds noise before a step. Returns x and its
    sigma."""
    gamma = min(s_churn / steps, sqrt(2) - 1) if s_tmin <= sigma <= s_tmax else 0.0
    hat = sigma * (1 + gamma)
    scale = s_noise * sqrt(hat**2 - sigma**2)
    return (x + scale * noise(sigma, hat) if scale else x), hat


def euler(model, x, sigmas, s_churn=0.0, s_tmin=0.0, s_tmax=inf, s_noise=1.0, noise=None):
    """Algorithm 2 of arXiv 2206.00364 without its second half. Flow: yes, without churn."""
    path = [x]
    for sigma, after in zip(sigmas, sigmas[1:]):
        x, hat = churn(x, sigma, len(sigmas) - 1, s_churn, s_tmin, s_tmax, s_noise, noise)
        x = x + (after - hat) * slope(x, hat, model(x, hat))
        path.append(x)
    return path


def heun(model, x, sigmas, s_churn=0.0, s_tmin=0.0, s_tmax=inf, s_noise=1.0, noise=None):
    """Algorithm 2 of arXiv 2206.00364. Flow: yes, without churn."""
    path = [x]
    for sigma, after in zip(sigmas, sigmas[1:]):
        x, hat = churn(x, sigma, len(sigmas) - 1, s_churn, s_tmin, s_tmax, s_noise, noise)
        first = slope(x, hat, model(x, hat))
        guess = x + (after - hat) * first
        second = slope(guess, after, model(guess, after)) if after > 0 else first
        x = x + (after - hat) * (first + second) / 2
        path.append(x)
    return path


def dpm_2(model, x, sigmas, s_churn=0.0, s_tmin=0.0, s_tmax=inf, s_noise=1.0, noise=None):
    """The midpoint rule with the midpoint in log sigma, after DPM-Solver-2 (arXiv 2206.00927).
    Flow: yes, without churn."""
    path = [x]
    for sigma, after in zip(sigmas, sigmas[1:]):
        x, hat = churn(x, sigma, len(sigmas) - 1, s_churn, s_tmin, s_tmax, s_noise, noise)
        d = slope(x, hat, model(x, hat))
        if after > 0:
            middle = sqrt(hat * after)
            halfway = x + (middle - hat) * d
            d = slope(halfway, middle, model(halfway, middle))
        x = x + (after - hat) * d
        path.append(x)
    return path


def lms_weights(nodes, start, end):
    """Returns the integrals of the Lagrange polynomials of up to four nodes from start to end, by
    Gauss' two points, which are exact."""
    centre, half = (start + end) / 2, (end - start) / 2
    points = [centre - half / sqrt(3), centre + half / sqrt(3)]
    return [
        half * sum(np.prod([(p - other) / (node - other) for other in nodes if other != node]) for p in points)
        for node in nodes
    ]


def lms(model, x, sigmas, order=4):
    """Linear multistep (Adams-Bashforth on uneven rungs), order 1 to 4. Flow: yes."""
    path, slopes = [x], []
    for i, (sigma, after) in enumerate(zip(sigmas, sigmas[1:])):
        slopes = [slope(x, sigma, model(x, sigma))] + slopes[: order - 1]
        nodes = [sigmas[i - j] for j in range(len(slopes))]
        x = x + sum(w * d for w, d in zip(lms_weights(nodes, sigma, after), slopes))
        path.append(x)
    return path


def dpmpp_2m(model, x, sigmas):
    """DPM-Solver++(2M), algorithm 2 of arXiv 2211.01095."""
    path, last, h_last = [x], None, inf
    for sigma, after in zip(sigmas, sigmas[1:]):
        denoised = model(x, sigma)
        h = log(sigma / after) if after > 0 else inf
        guess = denoised
        if last is not None and isfinite(h):
            guess = denoised + h / (2 * h_last) * (denoised - last)
        x = after / sigma * x + (1 - after / sigma) * guess
        path.append(x)
        last, h_last = denoised, h
    return path


def res_multistep(model, x, sigmas):
    """Refined exponential solver, second order, multistep: arXiv 2308.02157. Flow: yes,
    unchanged."""
    path, last, h_last = [x], None, inf
    for sigma, after in zip(sigmas, sigmas[1:]):
        denoised = model(x, sigma)
        x = after / sigma * x + (1 - after / sigma) * denoised
        if after > 0:
            h = log(sigma / after)
            if last is not None:
                x = x + (h + expm1(-h)) / h_last * (denoised - last)
            h_last = h
        path.append(x)
        last = denoised
    return path


def gradient_estimation(model, x, sigmas, gamma=2.0, denoise_last=True):
    """Equation 12 of arXiv 2306.04848: Euler along gamma d + (1 - gamma) d_last. Flow: yes."""
    path, last = [x], None
    for sigma, after in zip(sigmas, sigmas[1:]):
        d = slope(x, sigma, model(x, sigma))
        plain = last is None or (denoise_last and after == 0)
        x = x + (after - sigma) * (d if plain else gamma * d + (1 - gamma) * last)
        path.append(x)
        last = d
    return path


class DpmSolver:
    """The steps of DPM-Solver-1, 2 and 3 (algorithms 1 and 2 of arXiv 2206.00927) from (t, x), with
    t = -ln sigma, to t'."""

    def __init__(self, model, x, t):
        self.model, self.x, self.t = model, x, t
        self.noise = self.predict(x, t)

    def predict(self, x, t):
        return slope(x, exp(-t), self.model(x, exp(-t)))

    def first(self, to):
        """Order 1, without a further call."""
        return self.x - exp(-to) * expm1(to - self.t) * self.noise

    def second(self, to, r1=1 / 2):
        """Order 2, with one further call. The prediction at t + r1 h is kept for `third`."""
        h = to - self.t
        self.noise_1 = self.predict(self.first(self.t + r1 * h), self.t + r1 * h)
        return self.first(to) - exp(-to) * expm1(h) / (2 * r1) * (self.noise_1 - self.noise)

    def third(self, to, r1=1 / 3, r2=2 / 3, reuse=False):
        """Order 3, with two further calls, or one after `second(to, r1)`."""
        h = to - self.t
        if not reuse:
            self.noise_1 = self.predict(self.first(self.t + r1 * h), self.t + r1 * h)
        change = self.noise_1 - self.noise

        def phi(h):
            return expm1(h) / h - 1

        middle = self.t + r2 * h
        x_2 = self.first(middle) - exp(-middle) * r2 / r1 * phi(r2 * h) * change
        return self.first(to) - exp(-to) / r2 * phi(h) * (self.predict(x_2, middle) - self.noise)


def ancestral(t, to, end, eta):
    """Returns the t to which a step from t to t' must go, not past the end, and the noise that
    brings it back to t'."""
    if not eta:
        return to, 0.0
    sigma, after = exp(-t), exp(-to)
    up = min(after, eta * sqrt(after**2 * (sigma**2 - after**2) / sigma**2))
    down = sqrt(after**2 - up**2)
    to_down = end if down == 0 else min(end, -log(down))
    return to_down, sqrt(max(0.0, after**2 - exp(-to_down) ** 2))


def dpm_fast(model, x, sigma_max, sigma_min, calls, eta=0.0, s_noise=1.0, noise=None):
    """DPM-Solver-fast (arXiv 2206.00927): `calls` model calls, on its own rungs."""
    orders = [3] * (calls // 3 - 1) + [2, 1] if calls % 3 == 0 else [3] * (calls // 3) + [calls % 3]
    end = -log(sigma_min)
    times = np.linspace(-log(sigma_max), end, len(orders) + 1)
    path = [(sigma_max, x)]
    for order, t, to in zip(orders, times, times[1:]):
        to_down, up = ancestral(t, to, end, eta)
        solver = DpmSolver(model, x, t)
        x = (solver.first, solver.second, solver.third)[order - 1](to_down)
        if up * s_noise:
            x = x + up * s_noise * noise(exp(-t), exp(-to))
        path.append((exp(-to), x))
    return path


def dpm_adaptive(
    model, x, sigma_max, sigma_min, order=3, rtol=0.05, atol=0.0078, h_init=0.05, pcoeff=0.0, icoeff=1.0, dcoeff=0.0,
    accept_safety=0.81, eta=0.0, s_noise=1.0, max_calls=3000, noise=None,
):  # fmt: skip
    """DPM-Solver-12 or 23 (arXiv 2206.00927, appendix) with a PID controller.

    The last attempt that `max_calls` allows goes straight to the end. If a rounding could decide
    whether an attempt is kept, the function fails, because float32 could not reproduce such a
    golden value.
    """
    t, end = -log(sigma_max), -log(sigma_min)
    low_last, h, errors = x, h_init, None
    weights = [pcoeff + icoeff + dcoeff, -(pcoeff + 2 * dcoeff), dcoeff]
    weights = [w / (1.5 if eta else order) for w in weights]
    path = [(sigma_max, x)]
    for attempts_left in reversed(range(max_calls // order)):
        if not t < end - 1e-5:
            break
        to = min(end, t + h) if attempts_left else end
        to_down, up = ancestral(t, to, end, eta)
        solver = DpmSolver(model, x, t)
        if order == 2:
            low, high = solver.first(to_down), solver.second(to_down)
        else:
            low, high = solver.second(to_down, r1=1 / 3), solver.third(to_down, reuse=True)
        scale = np.maximum(atol, rtol * np.maximum(np.abs(low), np.abs(low_last)))
        inverse = 1 / (sqrt(np.mean(((low - high) / scale) ** 2)) + 1e-8)
        errors = [inverse] + (errors[1:] if errors else [inverse, inverse])
        factor = 1 + atan(np.prod([e**w for e, w in zip(errors, weights)]) - 1)
        assert not attempts_left or abs(factor - accept_safety) > 1e-3, "too near to call"
        h *= factor
        if factor >= accept_safety or not attempts_left:
            errors = [inverse, inverse, errors[1]]
            low_last, x = low, high
            if up * s_noise:
                x = x + up * s_noise * noise(exp(-t), exp(-to))
            t = to
            path.append((exp(-t), x))
    return path


def karras(count, sigma_min, sigma_max, rho=7.0):
    """Returns `count` sigmas: equation 5 of arXiv 2206.00364."""
    ramp = np.linspace(0, 1, count)
    return (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho


def restart_plan(sigmas):
    """WebUI's plan: returns the main ladder and the segments (low, high, steps, times) for the
    number of steps of `sigmas`."""
    steps = len(sigmas) - 1
    if steps < 20:
        return sigmas, []
    each, times = (steps // 4, 2) if steps >= 36 else (9, 1)
    main = np.append(karras(steps - each * times, sigmas[-2], sigmas[0]), sigmas[-1])
    return main, [(0.1, 2.0, each, times)]


def restart(model, x, sigmas, segments, snap=True, s_noise=1.0, noise=None):
    """Restart, arXiv 2306.14878, with Heun steps.

    On reaching the rung nearest to `low`, a segment (low, high, steps, times) goes up to `high`
    with noise and down again on its own Karras rungs, `times` times. `snap`: up to the rung nearest
    to `high`.
    """

    def nearest(sigma):
        return int(np.argmin(np.abs(np.asarray(sigmas) - sigma)))

    segments = {nearest(low): rest for low, *rest in segments}
    path = [(sigmas[0], x)]

    def go(x, rungs):
        path.extend(zip(rungs[1:], heun(model, x, rungs)[1:]))

    for i, (sigma, after) in enumerate(zip(sigmas, sigmas[1:])):
        go(path[-1][1], [sigma, after])
        high, steps, times = segments.get(i + 1, (0.0, 0, 0))
        high = sigmas[nearest(high)] if snap else high
        for _ in range(times if high > after else 0):
            x = path[-1][1] + s_noise * sqrt(high**2 - after**2) * noise(after, high)
            go(x, list(karras(steps + 1, after, high)))
    return path
