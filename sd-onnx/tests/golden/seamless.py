"""Makes `seamless/`: networks and runs whose convolutions wrap around, for seamless pictures.

    pip install -r requirements.txt pillow==13.0.0 && python seamless.py

WebUI's "Tiling" sets `padding_mode="circular"` on every `Conv2d` of both networks
(`apply_circular` in `modules/sd_hijack.py`). The cases of a single axis pad this axis in the same
way, and the other one with zeros. `README.md` describes the files.

The script asserts that each mistake moves a result by at least ten times the tolerance of the Rust
tests, and that rounding stays well within it.
"""

import contextlib
import shutil

import diffusers
import torch
from torch.nn import functional

from family_shapes import AUTOENCODERS
from make import (
    HERE, NEGATIVE, PROMPT, filled, read_recipes, relative, settle, write_cases)
from pictures import Model

OUT = HERE / "seamless"
LEAST = 1e-3  # the least effect of a mistake, relative L2
ROUNDING = 3e-5  # the largest effect of rounding
SEED, STEPS, GUIDANCE = 42, 5, 2.0
TIMESTEP = 500.0

# The pipeline of each model, and the size of its run. The third has only an autoencoder.
MODELS = {
    "four": ("StableDiffusionPipeline", (64, 56)),
    "families/sdxl-base": ("StableDiffusionXLPipeline", (48, 64)),
    "families/taesd": (None, None),
}


@contextlib.contextmanager
def seamless(networks, axes, only=lambda layer: True):
    """Makes the convolutions of the networks wrap around on some axes."""
    convolve = torch.nn.Conv2d._conv_forward

    def forward(self, x, weight, bias):
        if id(self) not in chosen:
            return convolve(self, x, weight, bias)
        (rows, columns), modes = self.padding, {True: "circular", False: "constant"}
        x = functional.pad(x, (columns, columns, 0, 0), mode=modes["x" in axes])
        x = functional.pad(x, (0, 0, rows, rows), mode=modes["y" in axes])
        return functional.conv2d(x, weight, bias, self.stride, 0, self.dilation, self.groups)

    layers = [layer for network in networks for layer in network.modules()]
    chosen = {id(layer) for layer in layers if type(layer) is torch.nn.Conv2d and only(layer)}
    torch.nn.Conv2d._conv_forward = forward
    try:
        yield
    finally:
        torch.nn.Conv2d._conv_forward = convolve


class Reference:
    """The quantities of a model that are recorded."""

    def __init__(self, name):
        self.name = name
        self.pipeline_name, self.size = MODELS[name]
        if self.pipeline_name:
            self.model = Model(name)
            self.unet, self.vae = self.model.parts["unet"], self.model.parts["vae"]
            self.networks = [self.unet, self.vae]
        else:
            self.vae = autoencoder(name)
            self.networks = [self.vae]

    def inputs(self):
        """Draws the inputs of single calls."""
        generator, rest = torch.Generator().manual_seed(SEED), {}
        channels = self.vae.config.latent_channels
        if self.pipeline_name:
            # No side is even at every level.
            rest["sample"] = torch.randn((1, channels, 11, 13), generator=generator)
            width = self.unet.config.cross_attention_dim
            rest["context"] = torch.randn((1, 77, width), generator=generator)
            if self.unet.config.addition_embed_type:
                width = self.model.parts["text_encoder_2"].config.projection_dim
                rest["pooled"] = torch.randn((1, width), generator=generator)
                rest["time_ids"] = torch.tensor([[104.0, 88.0, 0.0, 0.0, 104.0, 88.0]])
        latents = torch.randn((1, channels, 7, 5), generator=generator)
        rest["latents"] = latents * (5 if self.pipeline_name else 1)
        factor = 2 ** (len(blocks(self.vae)) - 1)
        image = torch.rand((1, 3, 5 * factor, 6 * factor), generator=generator)
        return rest | dict(image=image * 2 - 1)

    def outputs(self, inputs):
        """Returns the results of single calls."""
        found, dtype = {}, self.vae.dtype
        inputs = {key: value.to(dtype) for key, value in inputs.items()}
        if self.pipeline_name:
            added = {}
            if "pooled" in inputs:
                added = dict(text_embeds=inputs["pooled"], time_ids=inputs["time_ids"])
            found["output"] = self.unet(
                inputs["sample"], torch.tensor(TIMESTEP), encoder_hidden_states=inputs["context"],
                added_cond_kwargs=added).sample
        found["decoded"] = self.vae.decode(inputs["latents"]).sample
        encoded = self.vae.encode(inputs["image"])
        if hasattr(encoded, "latent_dist"):
            found |= dict(mean=encoded.latent_dist.mean, logvar=encoded.latent_dist.logvar)
        else:
            found["mean"] = encoded.latents
        return found

    def run(self):
        """Returns the final latents of a whole run, and its picture from -1 to 1."""
        scheduler = ("EulerDiscreteScheduler", dict(timestep_spacing="leading"))
        case = dict(pipeline=self.pipeline_name, scheduler=scheduler[0],
                    scheduler_changes=scheduler[1])
        pipeline = self.model.pipeline(case)
        (width, height), channels = self.size, self.vae.config.latent_channels
        factor = pipeline.vae_scale_factor
        generator = torch.Generator().manual_seed(SEED)
        noise = torch.randn((1, channels, height // factor, width // factor), generator=generator)
        latents = pipeline(
            prompt=PROMPT, negative_prompt=NEGATIVE, width=width, height=height, latents=noise,
            num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="latent").images
        decoded = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        return dict(latents=latents, picture=decoded.clamp(-1, 1))

    def all(self, inputs):
        return self.outputs(inputs) | (self.run() if self.pipeline_name else {})


def blocks(vae):
    config = vae.config
    return config.get("block_out_channels") or config["encoder_block_out_channels"]


def autoencoder(name):
    """Returns the autoencoder of a family that has nothing else."""
    shape = AUTOENCODERS[name.removeprefix("families/")]
    models = {"vae": getattr(diffusers, shape["vae_class"])(**shape["vae"])}
    return filled(models, read_recipes(name))["vae"]


# ---------------------------------------------------------------- mistakes


def check(reference, inputs, axes, right):
    """Asserts that mistakes move a result and that rounding does not. Returns the figures."""
    networks, wrong = reference.networks, {}

    def distances(axes, **rest):
        with seamless(networks, axes, **rest):
            other = reference.all(inputs)
        return {key: relative(right[key], other[key]) for key in right}

    # The padding of every result matters.
    for mistake in {"", "x", "y", "xy"} - {axes}:
        wrong[f"along {mistake or 'no axis'} in place of {axes}"] = min(distances(mistake).values())
    # So does each layer by itself. (1 × 1 convolutions have no padding, and diffusers pads the
    # input of the downsamplers of an `AutoencoderKL`.)
    layers = [(network, name, layer) for network in networks
              for name, layer in network.named_modules()
              if type(layer) is torch.nn.Conv2d and layer.padding != (0, 0)]
    for network, name, left_out in layers:
        moved = distances(axes, only=lambda layer: layer is not left_out)
        wrong[f"without {type(network).__name__} {name}"] = max(moved.values())
    # A wrong downsampler: its rows of zeros wrap around, too.
    padded = functional.pad

    def wraps_zeros(x, pad, mode="constant", **rest):
        return padded(x, pad, mode="circular" if tuple(pad) == (0, 1, 0, 1) else mode, **rest)

    if reference.pipeline_name:
        with seamless(networks, axes):
            functional.pad = torch.nn.functional.pad = wraps_zeros
            try:
                mean = reference.outputs(inputs)["mean"]
            finally:
                functional.pad = torch.nn.functional.pad = padded
        wrong["zeros that wrap around"] = relative(right["mean"], mean)

    for network in networks:
        network.double()
    with seamless(networks, axes):
        double = reference.outputs(inputs)
    for network in networks:
        network.float()
    rounding = max(relative(right[key], double[key]) for key in double)
    least = min(wrong, key=wrong.get)
    print(f"{reference.name} {axes}: least {wrong[least]:.2g} ({least}), rounding {rounding:.2g}")
    assert wrong[least] >= LEAST and rounding <= ROUNDING
    return wrong


def main():
    settle()
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    tensors, cases = {}, []
    for model in MODELS:
        reference = Reference(model)
        inputs = reference.inputs()
        short = model.removeprefix("families/")
        tensors |= {f"{short}.{key}": value for key, value in inputs.items()}
        for axes in ("xy", "x", "y"):
            with seamless(reference.networks, axes):
                right = reference.all(inputs)
            if axes == "xy":
                as_in_webui(reference, inputs, right)
            check(reference, inputs, axes, right)
            if "picture" in right:
                right["picture"] = right["picture"].to(torch.float16)
            name = f"{short}.{axes}"
            tensors |= {f"{name}.{key}": value for key, value in right.items()}
            case = dict(name=name, model=model, inputs=short, axes=axes)
            if reference.pipeline_name:
                case |= dict(timestep=TIMESTEP, prompt=PROMPT, negative=NEGATIVE, seed=SEED,
                             width=reference.size[0], height=reference.size[1], steps=STEPS,
                             guidance=GUIDANCE)
            cases.append(case)
    write_cases(OUT, tensors, cases)
    (OUT / "golden.safetensors").rename(OUT / "seamless.safetensors")


def as_in_webui(reference, inputs, right):
    """Asserts that both axes are WebUI's own."""
    for network in reference.networks:
        for layer in network.modules():
            if type(layer) is torch.nn.Conv2d:
                layer.padding_mode = "circular"
                paddings = [p for p in layer.padding[::-1] for _ in "ab"]
                layer._reversed_padding_repeated_twice = paddings
    found = reference.all(inputs)
    for network in reference.networks:
        for layer in network.modules():
            if type(layer) is torch.nn.Conv2d:
                layer.padding_mode = "zeros"
    assert all(relative(right[key], found[key]) < 1e-6 for key in right)


if __name__ == "__main__":
    main()
