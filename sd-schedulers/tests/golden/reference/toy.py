"""The toy model of the golden suite and of `examples/schedulers.rs`.

It is fixed, so that anybody can compare any implementation with it. It sees m = x / sqrt(1 +
sigma²) (or x for a flow model) and the timestep t, and returns 0.4 m + 0.1 cos(t / 100 + i), which
is read according to the prediction type. x starts as sigma sin(i + 1), and draw k of the noise is
cos(7 k + i), with i = 0 to 7.
"""

import math

import numpy as np

ELEMENTS = np.arange(8)
STEPS = (1, 2, 5, 10, 25, 50)


def output(m, t, shift=0.0):
    return 0.4 * m + 0.1 * np.cos(t / 100 + ELEMENTS + shift)


def start(sigma):
    return sigma * np.sin(ELEMENTS + 1.0)


def distance(found, expected):
    return float(np.linalg.norm(np.asarray(found) - expected) / np.linalg.norm(expected))


class Toy:
    """The toy model as a denoiser, and its noise. It records the calls, the timesteps and the
    draws.

    `prediction`: epsilon, v, sample, flow, or (for a network preconditioned as in table 1 of arXiv
    2206.00364) edm or edm-v. `told(sigma)`: the timestep. `exploding`: whether a flow model runs in
    the variance-exploding scaling.
    """

    def __init__(self, prediction, told, exploding=True, sigma_data=0.5):
        self.prediction, self.told, self.exploding, self.data = prediction, told, exploding, sigma_data
        self.told_between = told
        self.asked, self.timesteps, self.drawn = [], [], []

    def denoised(self, x, sigma, t, shift=0.0):
        if self.prediction == "flow":
            scale = 1 + sigma if self.exploding else 1.0
            x, sigma = x / scale, sigma / scale
            return x - sigma * output(x, t, shift)
        if self.prediction.startswith("edm"):
            total = sigma**2 + self.data**2
            sign = -1 if self.prediction == "edm-v" else 1
            out = output(x / math.sqrt(total), t, shift)
            return self.data**2 / total * x + sign * sigma * self.data / math.sqrt(total) * out
        variance = 1 + sigma**2
        out = output(x / math.sqrt(variance), t, shift)
        if self.prediction == "epsilon":
            return x - sigma * out
        return out if self.prediction == "sample" else x / variance - sigma / math.sqrt(variance) * out

    def ask(self, x, sigma, told=None):
        t = (told or self.told)(sigma)
        self.asked.append((float(sigma), np.array(x)))
        self.timesteps.append(float(t))
        return t

    def __call__(self, x, sigma):
        return self.denoised(x, sigma, self.ask(x, sigma))

    def between(self, x, sigma):
        """Calls the model at a sigma in the middle of a step, which may be a rung's sigma by
        chance."""
        return self.denoised(x, sigma, self.ask(x, sigma, self.told_between))

    def noise(self, *_):
        z = np.cos(7 * len(self.drawn) + ELEMENTS)
        self.drawn.append((len(self.asked), z))
        return z

    def drawn_after(self, calls):
        """Returns the noise drawn after this many calls and before the next one, or zeros if there
        was none."""
        return next((z for n, z in self.drawn if n == calls), np.zeros(len(ELEMENTS)))


class Pair(Toy):
    """With guidance: returns the denoised sample with 1 more inside the cosine, and the one without
    the prompt."""

    def __call__(self, x, sigma):
        t = self.ask(x, sigma)
        return self.denoised(x, sigma, t, 1.0), self.denoised(x, sigma, t)


def compare(ours, theirs):
    """Returns the worst relative error over every state that a model was called with, its sigma,
    and the end.

    Both arguments are (asked, last x).
    """
    assert len(ours[0]) == len(theirs[0]), f"{len(ours[0])} calls, not {len(theirs[0])}"
    pairs = list(zip(ours[0], theirs[0]))
    errors = [distance(x, y) for (_, x), (_, y) in pairs] + [abs(s / z - 1) for (s, _), (z, _) in pairs if z]
    return max(errors + [distance(ours[1], theirs[1])])
