"""Runs the ONNX graph that `convert --to onnx` writes through OpenVINO's own API.

The graph gets fixed shapes. The sinusoids of timesteps and sizes are computed in float32 and become
inputs, because the sines would lose too much precision in bf16.
"""

import openvino
from openvino import opset13

import inputs

HINTS = {"f32": openvino.Type.f32, "bf16": openvino.Type.bf16, "f16": openvino.Type.f16}


def start(job):
    core = openvino.Core()
    if job.part == "unet":
        model = core.read_model(job.graphs / "unet" / "model.onnx")
        arrays = inputs.unet_inputs(job.model, job.latents)
    else:
        model = core.read_model(job.graphs / "vae_decoder" / "model.onnx")
        arrays = {model.inputs[0].any_name: inputs.vae_input(job.model, job.latents)}
    model.reshape({name: list(array.shape) for name, array in arrays.items()})
    arrays = without_sinusoids(core, model, arrays)
    options = {"INFERENCE_PRECISION_HINT": HINTS[job.precision], "PERFORMANCE_HINT": "LATENCY"}
    if job.threads:
        options["INFERENCE_NUM_THREADS"] = job.threads
    compiled = core.compile_model(model, "CPU", options)
    return lambda call: compiled(arrays)[0]


def without_sinusoids(core, model, arrays):
    """Replaces the sinusoids of the model by inputs, and returns all inputs of the new model."""
    for joined in sinusoids(model):
        part = openvino.Model([joined.output(0)], model.get_parameters(), "sinusoid").clone()
        value = core.compile_model(part, "CPU", {"INFERENCE_PRECISION_HINT": openvino.Type.f32})(
            arrays
        )[0]
        given = opset13.parameter(list(value.shape), openvino.Type.f32, name=joined.friendly_name)
        given.output(0).set_names({given.friendly_name})
        joined.output(0).replace(given.output(0))
        model.add_parameters([given])
        arrays = arrays | {given.friendly_name: value.copy()}
    used = [
        parameter for parameter in model.get_parameters() if parameter.output(0).get_target_inputs()
    ]
    for parameter in model.get_parameters():
        if parameter not in used:
            arrays.pop(parameter.output(0).any_name)
            model.remove_parameter(parameter)
    return arrays


def sinusoids(model):
    """Returns the nodes that join sines and cosines."""
    joined = {}
    for node in model.get_ops():
        if node.get_type_name() == "Sin":
            for reader in node.output(0).get_target_inputs():
                joined[reader.get_node().friendly_name] = reader.get_node()
    return list(joined.values())
