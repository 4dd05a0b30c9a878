"""Runs a plain export of torch.onnx.export in ONNX Runtime."""

import onnxruntime

import inputs

FOLDERS = {"unet": "unet", "vae-decoder": "vae_decoder"}


def start(job):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    session = onnxruntime.InferenceSession(file(job), options, providers=["CPUExecutionProvider"])
    if job.part == "unet":
        arrays = inputs.unet_inputs(job.model, job.latents)
    else:
        arrays = {session.get_inputs()[0].name: inputs.vae_input(job.model, job.latents)}
    return lambda call: session.run(None, arrays)[0]


def file(job):
    return job.exports / f"{FOLDERS[job.part]}-{job.latents}" / "model.onnx"


def export(job):
    """Writes the torch network as a float32 graph, unless the file exists."""
    if file(job).exists():
        return
    import torch

    from engines import diffusers_torch

    module, arguments = diffusers_torch.network(job)
    file(job).parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        module,
        tuple(arguments.values()),
        file(job),
        input_names=list(arguments),
        output_names=["out"],
        external_data=True,
        dynamo=True,
        optimize=True,
        verbose=False,
    )
