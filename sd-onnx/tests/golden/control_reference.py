"""The diffusers pipelines that `control.py` runs, with the networks of `control_shapes.py`."""

import contextlib
import tempfile
from pathlib import Path

import diffusers
import numpy
import safetensors.torch
import torch
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel
from PIL import Image

import pictures
import vision
from control_shapes import (
    BASES, PIPELINES, VISION, hint, image_adapters_of, loaded, networks_of, recipes_of)
from family_reference import unet_inputs
from make import NEGATIVE, PROMPT, tensor_of
from pictures import Draws, Model


# The weights of WebUI's extension for the soft modes: thirteen residuals, the middle last, and the
# four features of a T2I-Adapter.
SOFT = [0.825 ** (12 - index) for index in range(13)]
SOFT_FEATURES = [0.25, 0.62, 0.825, 1.0]


class Base:
    """A small model with its control networks."""

    def __init__(self, folder):
        self.folder, self.model = folder, Model(BASES[folder])
        self.unet = self.model.parts["unet"]
        self.factor = 2 ** (len(self.model.parts["vae"].config.block_out_channels) - 1)
        self.networks = networks_of(folder, self.unet)
        self.encoder, _ = vision.model_of(VISION)
        self.encoder.eval()
        shapes = {part: {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
                  for part, network in self.networks.items()}
        shapes |= image_adapters_of(folder, self.unet, vision.SHAPES[VISION])
        if "union" in shapes:
            shapes["union"] = shapes.pop("union")  # the seeds count up by part
        first = 20 * list(BASES).index(folder)
        self.recipes = {part: recipes_of(part, tensors, first + index)
                        for index, (part, tensors) in enumerate(shapes.items())}
        for part, network in self.networks.items():
            loaded(network, self.recipes[part])

    def changed(self, part, changes):
        """Returns a network, or a copy with another configuration."""
        network = self.networks[part]
        if not changes:
            return network
        copy = type(network).from_config(network.config, **changes)
        copy.load_state_dict(network.state_dict())
        return copy.to(network.dtype).eval()

    @contextlib.contextmanager
    def doubled(self):
        networks = [*self.networks.values(), self.encoder]
        with self.model.doubled():
            for network in networks:
                network.double()
            try:
                yield
            finally:
                for network in networks:
                    network.float()

    def pipeline(self, case):
        """Builds the pipeline of a case with its scheduler and its control networks."""
        kind = getattr(diffusers, case["scheduler"])
        parts = dict(self.model.parts)
        parts["scheduler"] = kind.from_config(self.model.scheduler.config, **case["changes"])
        if case["controls"]:
            used = case["controls"][:1] if is_union(case) else case["controls"]
            nets = [self.changed(one["part"], one["changes"]) for one in used]
            parts["controlnet"] = nets[0] if len(nets) == 1 else MultiControlNetModel(nets)
        if case["adapters"]:
            nets = [self.networks[a["part"]] for a in case["adapters"]]
            parts["adapter"] = nets[0] if len(nets) == 1 else diffusers.MultiAdapter(nets)
        options = dict(self.model.options)
        if self.folder == "sd1":
            options |= dict(safety_checker=None, requires_safety_checker=False)
            options["feature_extractor"] = None
        elif not case["adapters"]:
            options["add_watermarker"] = False
        pipeline = getattr(diffusers, case["pipeline"])(**parts, **options)
        pipeline.set_progress_bar_config(disable=True)
        if case["images"]:
            self.load_image_adapters(pipeline, case["images"])
        return pipeline

    @contextlib.contextmanager
    def image_adapters(self, images):
        """Yields a pipeline whose UNet has IP-Adapters."""
        kind = PIPELINES[self.folder, "text"]
        pipeline = self.pipeline(dict(
            pipeline=kind, scheduler=type(self.model.scheduler).__name__, changes={}, controls=[],
            adapters=[], images=images))
        try:
            yield pipeline
        finally:
            pipeline.unload_ip_adapter()

    def load_image_adapters(self, pipeline, images):
        """Loads IP-Adapters as users do: from files with the published names."""
        pipeline.register_modules(
            image_encoder=self.encoder, feature_extractor=vision.processor_of(VISION))
        with tempfile.TemporaryDirectory() as folder:
            files = [f"{index}.safetensors" for index in range(len(images))]
            for file, image in zip(files, images):
                tensors = {r["name"]: tensor_of(r) for r in self.recipes[image["part"]]}
                safetensors.torch.save_file(tensors, Path(folder) / file)
            pipeline.load_ip_adapter(folder, subfolder="", weight_name=files)
        pipeline.set_ip_adapter_scale([image["scale"] for image in images])


def control_picture(used, case):
    """Returns the control picture of a ControlNet or T2I-Adapter of a run."""
    return Image.fromarray(hint(used["seed"], *(used["size"] or case["size"])))


def is_union(case):
    """Returns whether one ControlNet takes all control pictures of a run."""
    return any(one["part"] == "union" for one in case["controls"])


def inpaint_condition(case):
    """Returns the picture with -1 under the mask, as in the model card of ControlNet inpainting."""
    pixels = pictures.picture(case["picture"]).astype(numpy.float32) / 255.0
    masked = pictures.mask(case["mask"], case["picture"]).astype(numpy.float32) / 255.0
    pixels[masked > 0.5] = -1.0
    return torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy())


class Run:
    """A run of a case.

    The keyword arguments make mistakes. `spoil` gets the pipeline before the run. `control` may
    edit the arguments of each call of a ControlNet, and `unet` those of the UNet. `hints` may edit
    the control pictures. Other arguments are changed values of the case."""

    def __init__(self, base, case, spoil=None, control=None, unet=None, hints=None, **changes):
        case = case | changes
        self.base, self.case = base, case
        self.scales, self.calls, self.control_calls, self.unet_calls = [], [], [], []
        pipeline = self.pipeline = base.pipeline(case)
        if spoil:
            spoil(pipeline)
        options = self.options(hints or (lambda picture: picture))
        try:
            with contextlib.ExitStack() as stack, Draws() as draws:
                for index, net in enumerate(self.control_nets()):
                    stack.enter_context(control_inputs(net, index, self.saw_control, control))
                stack.enter_context(unet_inputs(base.unet, self.saw_unet(unet)))
                self.latents = pipeline(**options).images
        finally:
            for hook in base.unet.__dict__.pop("spoiled", []):
                hook.remove()
            if case["images"]:
                pipeline.unload_ip_adapter()
        self.draws = draws.found
        self.timesteps = [float(call["timestep"]) for call in self.unet_calls]

    def control_nets(self):
        net = getattr(self.pipeline, "controlnet", None)
        return getattr(net, "nets", [net] if net is not None else [])

    def saw_control(self, index, kwargs):
        self.control_calls.append((index, dict(kwargs)))

    def saw_unet(self, edit):
        def see(kwargs):
            if edit:
                edit(kwargs)
            if self.case["mode"] != "balanced":
                soften(kwargs, self.case["mode"])
            # The UNet takes the features of T2I-Adapters out of their list.
            self.unet_calls.append(
                {k: list(v) if isinstance(v, list) else v for k, v in kwargs.items()})
        return see

    def options(self, edit):
        case = self.case
        width, height = case["size"]
        found = dict(prompt=PROMPT, negative_prompt=NEGATIVE, num_inference_steps=case["steps"],
                     guidance_scale=case["guidance"], output_type="latent",
                     generator=torch.Generator().manual_seed(case["seed"]))
        used = case["controls"] or case["adapters"]
        plain = inpaint_condition(case) if case["mask"] else None
        images = [edit(plain if case["mask"] else control_picture(one, case)) for one in used]
        images = images[0] if len(images) == 1 else images
        if case["controls"]:
            starts = [one["start"] for one in used]
            ends = [one["end"] for one in used]
            scales = [one["scale"] for one in used]
            found |= dict(control_guidance_start=starts, control_guidance_end=ends,
                          guess_mode=case["guess_mode"],
                          controlnet_conditioning_scale=scales if len(used) > 1 else scales[0])
        if case["picture"]:
            picture = Image.fromarray(pictures.picture(case["picture"]))
            found |= dict(image=picture, control_image=images, strength=case["strength"])
            if case["mask"]:
                mask = pictures.mask(case["mask"], case["picture"])
                found["mask_image"] = Image.fromarray(mask)
        elif is_union(case):
            found |= dict(control_image=images if len(used) > 1 else [images],
                          control_mode=[one["type"] for one in used],
                          controlnet_conditioning_scale=scales)
        elif used:
            found["image"] = images
        if case["adapters"]:
            scales = [one["scale"] for one in used]
            found["adapter_conditioning_scale"] = scales if len(used) > 1 else scales[0]
            if self.base.folder == "sdxl":
                found["adapter_conditioning_factor"] = case["adapter_factor"]
        if case["images"]:
            found["ip_adapter_image"] = [
                Image.fromarray(vision.picture(one["picture"])) for one in case["images"]]
        return found | dict(width=width, height=height)

    def active(self):
        """Returns for each ControlNet the calls of the UNet during which it acts."""
        found = [[] for _ in self.case["controls"]]
        counts = [0] * len(found)
        for index, kwargs in self.control_calls:
            scales = kwargs["conditioning_scale"]
            scales = dict(enumerate(scales)) if is_union(self.case) else {index: scales}
            for place, scale in scales.items():
                if scale != 0:
                    found[place].append(counts[place])
                counts[place] += 1
        return found


def soften(kwargs, mode):
    """Weighs the inputs of a UNet as WebUI's extension does.

    "prompt" is its mode "My prompt is more important", and "control" is "ControlNet is more
    important", which also leaves out the negative half. The extension weighs the residuals of each
    network before it adds them up, which comes to the same."""

    def weigh(tensor, weight):
        kept = torch.ones_like(tensor[:, :1, :1, :1])
        if mode == "control":
            kept[: len(kept) // 2] = 0
        return tensor * kept * weight

    features = kwargs.get("down_intrablock_additional_residuals")
    if features:
        kwargs["down_intrablock_additional_residuals"] = [
            weigh(feature, weight) for feature, weight in zip(features, SOFT_FEATURES)]
        return
    *down, middle = [weigh(residual, weight) for residual, weight in zip(
        [*kwargs["down_block_additional_residuals"], kwargs["mid_block_additional_residual"]],
        SOFT)]
    kwargs["down_block_additional_residuals"] = down
    kwargs["mid_block_additional_residual"] = middle


@contextlib.contextmanager
def control_inputs(net, index, see, edit):
    """Passes the arguments of each call of a ControlNet to `see`, and before through `edit`."""

    def hook(module, args, kwargs):
        kwargs = kwargs | dict(zip(("sample", "timestep"), args))
        if kwargs.get("added_cond_kwargs"):
            kwargs["added_cond_kwargs"] = dict(kwargs["added_cond_kwargs"])
        if edit:
            edit(kwargs)
        see(index, kwargs)
        return (), kwargs

    handle = net.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
