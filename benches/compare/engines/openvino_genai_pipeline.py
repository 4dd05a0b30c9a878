"""Runs OpenVINO GenAI on a model that optimum-intel exported.

The shapes are fixed, as GenAI's guide advises. Only whole pictures are drawn. The packages need a
separate environment: see `requirements-genai.txt`.
"""

import numpy
import openvino_genai
import torch  # noqa: F401 - TorchGenerator needs it, and the load must not include the import

import inputs


def start(job):
    height, width = (8 * side for side in inputs.sides(job.latents))
    pipeline = openvino_genai.Text2ImagePipeline(job.exports)
    pipeline.set_scheduler(
        openvino_genai.Scheduler.from_config(
            job.exports / "scheduler" / "scheduler_config.json",
            openvino_genai.Scheduler.Type.EULER_DISCRETE,
        )
    )
    pipeline.reshape(1, height, width, inputs.GUIDANCE)
    options = dict(INFERENCE_PRECISION_HINT=job.precision, PERFORMANCE_HINT="LATENCY")
    if job.threads:
        options["INFERENCE_NUM_THREADS"] = job.threads
    pipeline.compile("CPU", **options)

    def draw(call):
        pixels = pipeline.generate(
            inputs.PROMPT,
            negative_prompt=inputs.NEGATIVE,
            num_inference_steps=inputs.STEPS if call else 1,
            guidance_scale=inputs.GUIDANCE,
            height=height,
            width=width,
            generator=openvino_genai.TorchGenerator(inputs.SEED),
        ).data
        return pixels.transpose(0, 3, 1, 2) / numpy.float32(127.5) - 1

    return draw
