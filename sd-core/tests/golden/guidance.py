"""Writes guidance.json: the results of diffusers' guiders, and of APG as in its paper.

    pip install diffusers==0.42.1 torch==2.15.0 && python guidance.py

The guiders and dynamic thresholding are diffusers' code, in float32. diffusers implements APG
differently from its paper (https://arxiv.org/abs/2410.02416, algorithm 1), so that this script
contains the paper's algorithm, in float64.
"""

import json
import math
from pathlib import Path

import diffusers
import torch
from diffusers import DDIMScheduler
from diffusers.guiders import AdaptiveProjectedGuidance, ClassifierFreeGuidance, ClassifierFreeZeroStarGuidance
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer

VERSIONS = {"diffusers": diffusers.__version__, "torch": torch.__version__.split("+")[0]}
assert VERSIONS == {"diffusers": "0.42.1", "torch": "2.15.0"}, VERSIONS

SHAPE = (1, 4, 3, 5)
SIGMAS = [8.0, 2.5, 0.75, 0.125]
INTERVALS = [(0.0, 1.0), (0.1, 0.9), (0.3, 0.7), (0.05, 0.55), (0.0, 0.29), (0.58, 0.58), (1 / 3, 2 / 3), (0.99, 1.0)]


def inputs():
    """Returns noisy latents and two similar predictions, like a model's, for each of four steps."""
    generator = torch.Generator().manual_seed(0)
    steps = []
    for sigma in SIGMAS:
        x, conditional, other = torch.randn((3, *SHAPE), generator=generator)
        conditional = conditional + 0.25
        unconditional = 0.8 * conditional + 0.3 * other
        steps.append({"sigma": sigma, "x": sigma * x, "conditional": conditional, "unconditional": unconditional})
    return steps


def values(tensor):
    return tensor.to(torch.float32).flatten().tolist()


def guided(guider, steps):
    """Returns the raw output after each step."""
    outputs = []
    for i, step in enumerate(steps):
        guider.set_state(step=i, num_inference_steps=len(steps), timestep=None)
        outputs.append(guider.forward(step["conditional"], step["unconditional"])["pred"])
    return outputs


def apg_of_diffusers(scale, eta, threshold, momentum, rescale=0.0):
    guider = AdaptiveProjectedGuidance(
        guidance_scale=scale,
        adaptive_projected_guidance_rescale=threshold,
        eta=eta,
        guidance_rescale=rescale,
    )
    # `prepare_inputs` does this before the first step.
    guider.momentum_buffer = MomentumBuffer(momentum) if momentum else None
    return guider


def denoised(prediction, step, output):
    """Returns the denoised sample in float64. x is in the variance-exploding scaling."""
    x, sigma, output = step["x"].double(), step["sigma"], output.double()
    if prediction == "epsilon":
        return x - sigma * output
    if prediction == "sample":
        return output
    if prediction == "flow":
        # On the straight path x and sigma are divided by 1 + sigma, and the sample is
        # x - sigma * output.
        return (x - sigma * output) / (1 + sigma)
    variance = sigma * sigma + 1
    return x / variance - sigma / math.sqrt(variance) * output


def apg_of_paper(prediction, steps, scale, eta, threshold, momentum):
    """Returns the denoised sample after each step, by algorithm 1 of the paper."""
    outputs, average = [], 0.0
    for step in steps:
        conditional = denoised(prediction, step, step["conditional"])
        difference = conditional - denoised(prediction, step, step["unconditional"])
        average = difference + momentum * average
        update = average
        if threshold > 0:
            update = update * min(1.0, threshold / update.norm().item())
        direction = conditional / conditional.norm()
        parallel = (update * direction).sum() * direction
        update = update - parallel + eta * parallel
        outputs.append(conditional + (scale - 1) * update)
    return outputs


def main():
    steps = inputs()
    apg = lambda form, eta, threshold, momentum: {
        "apg": {"eta": eta, "norm_threshold": threshold, "momentum": momentum, "form": form}
    }
    zero = lambda count: {"zero-star": {"zero_steps": count}}
    cases = []

    def case(prediction, guidance, outputs):
        cases.append({"prediction": prediction, "guidance": guidance, "expected": [values(output) for output in outputs]})

    # For a model that predicts the sample, the raw output is the denoised sample.
    raw = lambda guidance, guider: case("sample", guidance, guided(guider, steps))

    def of_raw(prediction, guidance, guider):
        outputs = guided(guider, steps)
        case(prediction, guidance, [denoised(prediction, *both) for both in zip(steps, outputs)])

    raw({"scale": 7.5}, ClassifierFreeGuidance(guidance_scale=7.5))
    for rescale in (0.3, 1.0):
        raw({"scale": 7.5, "rescale": rescale}, ClassifierFreeGuidance(guidance_scale=7.5, guidance_rescale=rescale))
    raw(
        {"scale": 5, "rescale": 0.7, "interval": [0.25, 0.75]},
        ClassifierFreeGuidance(guidance_scale=5.0, guidance_rescale=0.7, start=0.25, stop=0.75),
    )
    for scale, eta, threshold, momentum in [
        (7.5, 1.0, 0.0, 0.0),
        (7.5, 0.0, 0.0, 0.0),
        (9.0, 0.5, 2.0, 0.0),
        (9.0, 0.0, 1.5, -0.5),
        (4.0, 2.0, 15.0, 0.75),
    ]:
        raw(
            {"scale": scale, "method": apg("raw", eta, threshold, momentum)},
            apg_of_diffusers(scale, eta, threshold, momentum),
        )
        for prediction in ("epsilon", "v", "flow"):
            case(
                prediction,
                {"scale": scale, "method": apg("denoised", eta, threshold, momentum)},
                apg_of_paper(prediction, steps, scale, eta, threshold, momentum),
            )
    raw(
        {"scale": 9, "rescale": 0.5, "method": apg("raw", 0.0, 1.5, -0.5)},
        apg_of_diffusers(9.0, 0.0, 1.5, -0.5, rescale=0.5),
    )
    for count in (0, 1, 2):
        raw(
            {"scale": 6, "method": zero(count)},
            ClassifierFreeZeroStarGuidance(guidance_scale=6.0, zero_init_steps=count),
        )
        for prediction in ("epsilon", "v", "flow"):
            guider = ClassifierFreeZeroStarGuidance(guidance_scale=6.0, zero_init_steps=count)
            of_raw(prediction, {"scale": 6, "method": zero(count)}, guider)
    # zero_init_steps is 0, because diffusers' rescaling of an output of zeros divides 0 by 0.
    raw(
        {"scale": 6, "rescale": 0.7, "method": zero(0)},
        ClassifierFreeZeroStarGuidance(guidance_scale=6.0, zero_init_steps=0, guidance_rescale=0.7),
    )
    raw(
        {"scale": 6, "interval": [0.5, 1.0], "method": zero(1)},
        ClassifierFreeZeroStarGuidance(guidance_scale=6.0, zero_init_steps=1, start=0.5),
    )

    intervals = []
    for count in (1, 2, 3, 7, 10, 20, 30, 50):
        for start, stop in INTERVALS:
            guider = ClassifierFreeGuidance(guidance_scale=7.5, start=start, stop=stop)
            on = []
            for i in range(count):
                guider.set_state(step=i, num_inference_steps=count, timestep=None)
                if guider._is_cfg_enabled():
                    on.append(i)
            intervals.append({"interval": [start, stop], "steps": count, "on": on})

    sample = 4 * steps[0]["conditional"]
    thresholds = []
    for ratio, most in [(0.995, 1.0), (0.995, 100.0), (0.9, 100.0), (0.5, 2.0), (0.1, 100.0)]:
        scheduler = DDIMScheduler(thresholding=True, dynamic_thresholding_ratio=ratio, sample_max_value=most)
        thresholds.append({"ratio": ratio, "max": most, "expected": values(scheduler._threshold_sample(sample))})

    golden = {
        "versions": VERSIONS,
        "steps": [{key: values(value) if torch.is_tensor(value) else value for key, value in step.items()} for step in steps],
        "cases": cases,
        "intervals": intervals,
        "sample": values(sample),
        "thresholds": thresholds,
    }
    parts = []
    for key, value in golden.items():
        if isinstance(value, list) and not isinstance(value[0], float):
            value = "[\n" + ",\n".join(json.dumps(row) for row in value) + "\n]"
        else:
            value = json.dumps(value)
        parts.append(f"{json.dumps(key)}: {value}")
    Path(__file__).with_suffix(".json").write_text("{" + ",\n".join(parts) + "}\n")
    print(len(cases), "cases,", len(intervals), "intervals,", len(thresholds), "thresholds")


main()
