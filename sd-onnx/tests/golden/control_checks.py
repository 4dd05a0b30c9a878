"""Asserts that mistakes move the runs and the calls of `control.py`, and that rounding does not."""

import copy

import numpy
import torch
from PIL import Image
from torch.nn import functional

import control_reference
from control_reference import Run, is_union
from make import relative
from pictures import patched

VISIBLE = 1e-2  # the least effect of a control network on the final latents, relative L2
LEAST = 1e-3  # the least effect of a mistake
ROUNDING = 3e-5  # the largest effect of rounding on a run
ONE_CALL = 1e-5  # and on a single call
TEXT_TOKENS = 77

# The runs in which each residual is left out, one after the other.
THOROUGH = ("controlnet", "controlnet-guess", "controlnet-pool")


class Checks:
    """Collects the effects of mistakes, and asserts them at the end."""

    def __init__(self):
        self.least, self.failed, self.rounding, self.one_call = {}, [], 0.0, 0.0

    def run(self, run):
        """Checks a run."""
        name = f"{run.base.folder}/{run.case['name']}"
        effect = relative(run.latents, Run(run.base, run.case, **without(run.case)).latents)
        wrong = {}
        for what, how in mistakes(run):
            wrong[what] = min(wrong.get(what, 9.0), relative(
                run.latents, Run(run.base, run.case, **how).latents))
        with run.base.doubled():
            moved = relative(run.latents, Run(run.base, run.case).latents)
        self.rounding = max(self.rounding, moved)
        print(name, f"effect {effect:.2g}, rounding {moved:.1g},",
              {k: float(f"{v:.2g}") for k, v in wrong.items()}, flush=True)
        if effect < VISIBLE:
            self.failed.append((name, "effect", effect))
        if moved > ROUNDING:
            self.failed.append((name, "rounding", moved))
        for what, far in wrong.items():
            self.add(what, far, name)

    def calls(self, record):
        """Checks the single calls of a folder."""
        call_checks(self, record)

    def add(self, what, far, name):
        self.least[what] = min(self.least.get(what, (far, name)), (far, name))
        if far < LEAST:
            self.failed.append((name, what, far))

    def finish(self):
        print("| mistake | least effect | run |\n|---|---|---|")
        for what, (far, name) in sorted(self.least.items()):
            print(f"| {what} | {far:.2g} | `{name}` |")
        print(f"rounding: {self.rounding:.1g}, single calls {self.one_call:.1g}")
        assert not self.failed, self.failed


def without(case):
    """Returns the changes of a case with which no control network acts."""
    return {kind: [one | dict(scale=0.0) for one in case[kind]]
            for kind in ("controls", "adapters", "images")}


def call_checks(checks, record):
    """Asserts that single calls in double precision stay close."""
    with record.base.doubled():
        found = record.results()
    for name, value in found.items():
        moved = relative(record.tensors[name], value)
        if moved > ONE_CALL:
            checks.failed.append((f"{record.base.folder}/{name}", "rounding", moved))
        checks.one_call = max(checks.one_call, moved)
    for what, far in record.mistakes():
        checks.add(what, far, f"{record.base.folder}/call.all")


def mistakes(run):
    """Yields the names of mistakes with the arguments of `Run` that make them."""
    if run.case["controls"]:
        yield from control_mistakes(run)
    if run.case["adapters"]:
        yield from adapter_mistakes(run)
    if run.case["controls"] or run.case["adapters"]:
        yield from picture_mistakes(run)
    if run.case["images"]:
        yield from image_mistakes(run)


def changed(case, kind, index, **changes):
    """Returns a case's list of networks, with other values of one network."""
    found = list(case[kind])
    found[index] = found[index] | changes
    return {kind: found}


# ---------------------------------------------------------------- ControlNets


def control_mistakes(run):
    case = run.case
    several = len(case["controls"]) > 1
    for index, control in enumerate(case["controls"]):
        if control["scale"] != 1:
            yield "a scale left out", changed(case, "controls", index, scale=1.0)
        if several:
            yield "a second ControlNet ignored", changed(case, "controls", index, scale=0.0)
        for key, what in (("start", "start"), ("end", "end")):
            for shift in (-1, 1):
                at = control[key] + shift / len(run.timesteps)
                if control[key] not in (0.0, 1.0) and 0 <= at <= 1:
                    yield f"the {what} off by one", changed(case, "controls", index, **{key: at})
        if control["changes"].get("global_pool_conditions"):
            yield "residuals not pooled", changed(case, "controls", index, changes={})
    if is_union(case):
        yield from union_mistakes(run)
    elif several:
        parts = [control["part"] for control in case["controls"]]
        yield "ControlNets swapped", dict(controls=[
            one | dict(part=part) for one, part in zip(case["controls"], reversed(parts))])
    if case["mode"] == "control":
        yield "the residuals of both halves", dict(mode="prompt")
    if case["mode"] == "prompt":
        yield "the residuals of the conditional half alone", dict(mode="control")
    if case["mode"] != "balanced":
        yield "no soft weights", dict(mode="balanced")
        if run.base.folder != "sd1":  # where its ladder is nearly the same
            yield "the ladder of the guess mode for the soft weights", dict(guess_mode=True, mode="balanced")
        yield "soft weights in reverse", dict(spoil=reversed_weights)
    yield from residual_mistakes(run)
    yield from input_mistakes(run)


def union_mistakes(run):
    case = run.case
    for index, control in enumerate(case["controls"]):
        yield "another type of control picture", changed(case, "controls", index, type=0)
    yield "no types of control pictures in the time embedding", dict(control=edit_input(
        "control_type", torch.zeros_like))
    yield "another task embedding", dict(control=edit_input(
        "control_type_idx", lambda found: [index - 1 for index in found]))
    yield "attention between the pictures of a row", dict(spoil=attend_in_rows)
    if len(case["controls"]) > 1:
        yield "pictures scaled at the end", dict(spoil=scale_residuals)


def attend_in_rows(pipeline):
    """Attends as it may have been meant. A union attends between the rows of a batch."""
    for layer in pipeline.controlnet.transformer_layes:
        layer.attn.batch_first = True
        hooked_once(pipeline, Restored(layer.attn, "batch_first", False))


def scale_residuals(pipeline):
    """Scales the residuals of a union with two pictures, as with one."""
    def hook(module, args, kwargs, output):
        down, middle = output
        return [residual * 0.8 for residual in down], middle * 0.8
    hooked_once(pipeline, pipeline.controlnet.register_forward_hook(hook, with_kwargs=True))


class Restored:
    """Sets an attribute back when it is removed, like a hook."""

    def __init__(self, owner, name, value):
        self.owner, self.name, self.value = owner, name, value

    def remove(self):
        setattr(self.owner, self.name, self.value)


def residual_mistakes(run):
    """Yields mistakes in what a UNet receives from a ControlNet."""
    down = "down_block_additional_residuals"
    count = len(run.unet_calls[0][down])
    if run.case["name"] in THOROUGH:
        for index in range(count):
            yield "without one residual", dict(unet=edit_residual(index, torch.zeros_like))
        yield "residuals shifted by one", dict(unet=shift_residuals)
    yield "without the middle residual", dict(unet=edit_input(
        "mid_block_additional_residual", torch.zeros_like))
    guided = run.case["guidance"] > 1
    half = run.control_calls[0][1]["sample"].shape[0] < run.unet_calls[0]["sample"].shape[0]
    if guided and half:
        yield "the conditional half's residuals for both halves", dict(unet=edit_all(
            lambda residual: torch.cat([residual[1:], residual[1:]])))
    elif guided and run.case["mode"] != "control":
        yield "residuals for the conditional half alone", dict(unet=edit_all(
            lambda residual: torch.cat([torch.zeros_like(residual[1:]), residual[1:]])))
    if run.case["guess_mode"]:
        flat = lambda start, end, steps, **rest: torch.ones(steps)
        yield "the ladder of scales of the guess mode left out", dict(
            spoil=patches(torch, "logspace", flat))


def input_mistakes(run):
    """Yields mistakes in what a ControlNet receives."""
    kwargs = run.control_calls[0][1]
    yield "a ControlNet at a constant timestep", dict(control=edit_input(
        "timestep", lambda timestep: torch.ones_like(timestep)))
    if kwargs["sample"].shape[0] == 2:
        yield "prompt and negative prompt swapped in a ControlNet", dict(control=edit_input(
            "encoder_hidden_states", lambda states: states.flip(0)))
    if kwargs.get("added_cond_kwargs"):
        for key in ("text_embeds", "time_ids"):
            yield f"a ControlNet without {key}", dict(control=edit_added(key, torch.zeros_like))


def reversed_weights(pipeline):
    weights = control_reference.SOFT
    patches(control_reference, "SOFT", list(reversed(weights)))(pipeline)


def edit_input(key, change):
    def edit(kwargs):
        kwargs[key] = change(kwargs[key])
    return edit


def each(change):
    """Returns a change of a tensor, or of each tensor of a list."""
    return lambda value: [change(v) for v in value] if isinstance(value, list) else change(value)


def edit_added(key, change):
    def edit(kwargs):
        kwargs["added_cond_kwargs"][key] = change(kwargs["added_cond_kwargs"][key])
    return edit


def edit_residual(index, change):
    def edit(kwargs):
        found = list(kwargs["down_block_additional_residuals"])
        found[index] = change(found[index])
        kwargs["down_block_additional_residuals"] = found
    return edit


def edit_all(change):
    def edit(kwargs):
        found = kwargs["down_block_additional_residuals"]
        kwargs["down_block_additional_residuals"] = [change(residual) for residual in found]
        middle = kwargs["mid_block_additional_residual"]
        kwargs["mid_block_additional_residual"] = change(middle)
    return edit


def shift_residuals(kwargs):
    """Gives each residual's place to the one before it, where the shapes allow that."""
    found = list(kwargs["down_block_additional_residuals"])
    for index in range(len(found) - 1, 0, -1):
        if found[index].shape == found[index - 1].shape:
            found[index] = found[index - 1]
    kwargs["down_block_additional_residuals"] = found


def patches(owner, name, value):
    """Returns a spoiler that patches a function during the run of a pipeline."""
    def spoil(pipeline):
        call = type(pipeline).__call__

        class Patched(type(pipeline)):
            def __call__(self, *arguments, **options):
                with patched(owner, name, value):
                    return call(self, *arguments, **options)
        pipeline.__class__ = Patched
    return spoil


# ---------------------------------------------------------------- control pictures


def picture_mistakes(run):
    """Yields mistakes in the control pictures."""
    kind = "controls" if run.case["controls"] else "adapters"
    if run.case["mask"]:
        yield "black under the mask", dict(hints=lambda hint: hint.clamp(min=0))
        yield "red and blue swapped", dict(hints=lambda hint: hint.flip(1))
        return
    yield "red and blue swapped", dict(hints=swapped)
    for one in run.case[kind]:
        if one.get("changes", {}).get("controlnet_conditioning_channel_order"):
            yield "bgr ignored", dict(controls=[one | dict(changes={})])
    if kind == "controls":
        yield "a control picture from -1 to 1", dict(control=edit_input(
            "controlnet_cond", each(lambda hint: hint * 2 - 1)))
        yield "another control picture", dict(control=edit_input(
            "controlnet_cond", each(lambda hint: hint.flip(3))))
    size = run.case["size"]
    if any(one["size"] not in (None, size) for one in run.case[kind]):
        for resample in (0, 2, 3):  # nearest, bilinear, bicubic
            yield "resized in another way", dict(
                hints=lambda hint, resample=resample: hint.resize(size, resample))


def swapped(picture):
    red, green, blue = picture.split()
    return Image.merge("RGB", (blue, green, red))


def unnormalized(picture):
    """Returns a control picture from -1 to 1."""
    pixels = torch.from_numpy(numpy.array(picture)).permute(2, 0, 1)[None]
    return pixels.to(torch.float32) / 127.5 - 1


# ---------------------------------------------------------------- T2I-Adapters

FEATURES = "down_intrablock_additional_residuals"


def adapter_mistakes(run):
    case = run.case
    for index, adapter in enumerate(case["adapters"]):
        if adapter["scale"] != 1:
            yield "a scale left out", changed(case, "adapters", index, scale=1.0)
        if len(case["adapters"]) > 1:
            yield "a second T2I-Adapter ignored", changed(case, "adapters", index, scale=0.0)
    if case["adapter_factor"] != 1:
        for shift in (-1, 1):
            yield "a T2I-Adapter's share of the steps off by one", dict(
                adapter_factor=case["adapter_factor"] + shift / case["steps"])
    features = run.unet_calls[0][FEATURES]
    for index in range(len(features)):
        yield "without the features of one level", dict(
            unet=edit_features(lambda found, index=index: found[index].zero_()))
    if features[2].shape == features[3].shape:
        yield "features of two levels swapped", dict(
            unet=edit_features(lambda found: found.insert(2, found.pop(3))))
    if case["guidance"] > 1 and case["mode"] == "balanced":
        yield "a T2I-Adapter for one half", dict(
            unet=edit_features(lambda found: [feature[:1].zero_() for feature in found]))
    yield "features not in the skip connections", dict(spoil=path_alone)
    if run.base.unet.config.layers_per_block > 1:
        yield "features after the first layer of a level", dict(spoil=first_layer)
    if len(case["adapters"]) == 1 and case["adapters"][0]["size"] is None:
        yield "a control picture from -1 to 1", dict(hints=unnormalized)


def edit_features(change):
    def edit(kwargs):
        if kwargs.get(FEATURES):
            kwargs[FEATURES] = [feature.clone() for feature in kwargs[FEATURES]]
            change(kwargs[FEATURES])
    return edit


def path_alone(pipeline):
    """Keeps the features out of the skip connections, but not out of the blocks that follow."""
    for block in pipeline.unet.down_blocks:
        def hook(module, args, kwargs, output):
            sample, states = output
            feature = kwargs.get("additional_residuals")
            if feature is None:  # the UNet adds the features to `sample` in place
                return sample.clone(), states
            last = len(module.resnets) - 1
            return sample, (*states[:last], states[last] - feature, *states[last + 1 :])
        hooked_once(pipeline, block.register_forward_hook(hook, with_kwargs=True))


def first_layer(pipeline):
    """Adds the features of levels with attention to their first layers instead of the last."""
    for block in pipeline.unet.down_blocks:
        if not hasattr(block, "attentions"):
            continue
        kept = []

        def before(module, args, kwargs, kept=kept):
            kept[:] = [kwargs.pop("additional_residuals", 0)]
            return args, kwargs

        def after(module, args, output, kept=kept):
            return (output[0] + kept[0], *output[1:])

        hooked_once(pipeline, block.register_forward_pre_hook(before, with_kwargs=True))
        hooked_once(pipeline, block.attentions[0].register_forward_hook(after))


def hooked_once(pipeline, handle):
    """Removes a hook after the run, because runs share their UNet."""
    pipeline.unet.__dict__.setdefault("spoiled", []).append(handle)


# ---------------------------------------------------------------- IP-Adapters


def image_mistakes(run):
    case = run.case
    guided = case["guidance"] > 1
    for index, image in enumerate(case["images"]):
        if isinstance(image["scale"], dict):
            yield "a scale for all blocks", changed(case, "images", index, scale=1.0)
        elif image["scale"] != 1:
            yield "a scale left out", changed(case, "images", index, scale=1.0)
        if len(case["images"]) > 1:
            yield "a second IP-Adapter ignored", changed(case, "images", index, scale=0.0)
        other = "wide" if image["picture"] == "square" else "square"
        yield "another picture for an IP-Adapter", changed(case, "images", index, picture=other)
    if guided:
        yield "an IP-Adapter's tokens of the picture for the negative half, too", dict(
            unet=edit_tokens(lambda embeds: torch.cat([embeds[1:], embeds[1:]])))
        yield "zeros for the image tokens of the negative half", dict(spoil=zero_tokens)
        yield "an IP-Adapter for the conditional half alone", dict(spoil=no_negative_tokens)
    if any(image["part"] in ("ip_plus", "ip_full") for image in case["images"]):
        yield "the last layer of the image encoder", dict(spoil=last_layer)
        if guided:
            yield "zero states for a zero picture", dict(unet=edit_tokens(
                lambda embeds: torch.cat([torch.zeros_like(embeds[1:]), embeds[1:]])
                if embeds.dim() == 4 else embeds))
    yield "the numbers of an IP-Adapter shifted by one", dict(spoil=shift_layers)
    yield "keys and values swapped", dict(spoil=swap_layers)
    scale = case["images"][0]["scale"]
    if not isinstance(scale, dict):
        yield "less text where there is an image", dict(
            spoil=patches(functional, "scaled_dot_product_attention", less_text(1 - scale)))


def edit_tokens(change):
    def edit(kwargs):
        added = kwargs["added_cond_kwargs"]
        added["image_embeds"] = [change(embeds) for embeds in added["image_embeds"]]
    return edit


def zero_tokens(pipeline):
    def hook(module, args, output):
        return [torch.cat([torch.zeros_like(o[:1]), o[1:]]) for o in output]
    pipeline.unet.encoder_hid_proj.register_forward_hook(hook)


def no_negative_tokens(pipeline):
    """Gives the negative half no image tokens, by values of zero."""
    for processor in image_layers(pipeline):
        for layer in processor.to_v_ip:
            layer.register_forward_hook(
                lambda module, args, output: torch.cat([torch.zeros_like(output[:1]), output[1:]]))


def last_layer(pipeline):
    encode = pipeline.encode_image

    def encode_image(image, device, count, hidden=None):
        if not hidden:
            return encode(image, device, count, hidden)
        dtype = pipeline.image_encoder.dtype
        pixels = pipeline.feature_extractor(image, return_tensors="pt").pixel_values.to(dtype)
        return tuple(pipeline.image_encoder(p).last_hidden_state
                     for p in (pixels, torch.zeros_like(pixels)))
    pipeline.encode_image = encode_image


def image_layers(pipeline):
    processors = pipeline.unet.attn_processors.values()
    return [processor for processor in processors if hasattr(processor, "to_k_ip")]


def shift_layers(pipeline):
    """Gives each layer the weights of the layer before it, where the shapes allow that."""
    layers = image_layers(pipeline)
    copies = [copy.deepcopy(layer.state_dict()) for layer in layers]
    for layer, before in zip(layers[1:], copies):
        shapes = {k: v.shape for k, v in layer.state_dict().items()}
        if shapes == {k: v.shape for k, v in before.items()}:
            layer.load_state_dict(before)


def swap_layers(pipeline):
    for layer in image_layers(pipeline):
        layer.to_k_ip, layer.to_v_ip = layer.to_v_ip, layer.to_k_ip


def less_text(factor):
    attend = functional.scaled_dot_product_attention

    def attention(query, key, value, **rest):
        found = attend(query, key, value, **rest)
        return found * factor if key.shape[2] == TEXT_TOKENS else found
    return attention
