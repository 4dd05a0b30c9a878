"""The checks of `families.py`: a mistake moves the final latents of a run, and rounding does
not."""

import copy

import diffusers
import torch

from family_reference import unet_inputs
from make import TOLERANCE, filled, hooked, recipes_of, relative, residual
from shapes import EOS

LEAST = 10 * TOLERANCE  # the least change of the final latents by a mistake
MOST = 0.3 * TOLERANCE  # the largest change of them by rounding
ONE_CALL = 0.4e-5       # the largest change of one network call by rounding


class Effects(dict):
    """The least effect of each kind of mistake, and how many mistakes were made."""

    made = 0

    def add(self, what, far):
        self[what] = min(far, self.get(what, far))
        self.made += 1


def check(reference, record):
    """Asserts that each mistake moves the runs of a shape, and that rounding does not."""
    wrong = Effects()
    for mistakes in (text_mistakes, input_mistakes, unet_mistakes, image_mistakes):
        mistakes(reference, record, wrong)
    branches = left_out(reference, record)
    rounding = rounded(reference, record)
    smallest = min(wrong, key=wrong.get)
    assert wrong[smallest] >= LEAST, (smallest, wrong[smallest])
    branch = min(branches, key=branches.get)
    assert branches[branch] >= LEAST, (branch, branches[branch])
    for kind, most in (("runs", MOST), ("calls", ONE_CALL)):
        worst = max(rounding[kind], key=rounding[kind].get)
        assert rounding[kind][worst] <= most, (worst, rounding[kind][worst])
    latents = [v for k, v in record.tensors.items() if k.startswith("run.") and "latents" in k]
    spread = [v.std().item() for v in latents]
    images = [v.float() for k, v in record.tensors.items() if k.endswith(".image")]
    assert 0.3 <= min(spread) and max(spread) <= 25, spread
    assert min(image.std() for image in images) >= 0.05
    assert max((image.abs() == 1).float().mean() for image in images) <= 0.2
    rounding = [max(found.values()) for found in rounding.values()]
    return wrong, wrong.made, branches, *rounding


def moved(reference, record, case, **options):
    """Returns the relative distance between a run with a mistake and the recorded run."""
    return relative(record.tensors[f"run.{case['name']}.latents"], reference.run(case, **options))


def text_mistakes(reference, record, found):
    """Makes mistakes in the text encoders, in the first run if every run would show them."""
    case, towers = reference.runs[0], range(len(reference.towers))
    penultimate = reference.is_xl
    wrong = {}
    for index in towers:
        number = index + 1
        wrong[f"tower {number}: {'a' if penultimate else 'no'} final norm"] = dict(
            norm={index: penultimate})
        other = -1 if penultimate else -2
        wrong[f"tower {number}: layer {other}"] = dict(layer={index: other})
        wrong[f"tower {number}: layer -3"] = dict(layer={index: -3})
    if any(tower.tokenizer.pad_token_id == 0 for tower in reference.towers):
        wrong["padding with the end"] = dict(pad=EOS)
    if len(towers) == 2:
        wrong["towers swapped"] = dict(order=(1, 0))
    pooling = []
    if penultimate:
        pooling = ["last position", "position before", "penultimate", "no final norm"]
        text_2 = reference.shape["text_2"]
        if text_2["hidden_size"] == text_2["projection_dim"]:
            pooling.append("unprojected")
    wrong |= {f"pooled: {mistake}": dict(pooled=mistake) for mistake in pooling}
    for what, how in wrong.items():
        found.add(what, moved(
            reference, record, case, embeddings=reference.embeddings(case, **how)))
    if len(towers) == 2 and (
            reference.shape["text"]["hidden_size"] == reference.shape["text_2"]["projection_dim"]):
        embeddings = reference.embeddings(case)
        texts = [case["prompt"], case["negative"]]
        first = reference.towers[0]
        found.add("pooled: of the first tower", moved(reference, record, case, embeddings=[
            e and (e[0], first.model(first.windows(text or "", 1)).pooler_output)
            for e, text in zip(embeddings, texts)]))
    for case in reference.runs:
        name = case["name"]
        if case["windows"] > 1:
            found.add("pooled of the second window", moved(
                reference, record, case,
                embeddings=reference.embeddings(case, pooled="second window")))
            positive, negative = reference.embeddings(case)
            cut = [(s[0][:, :77], s[1]) if s else None for s in (positive, negative)]
            found.add("only one window", moved(reference, record, case, embeddings=cut))
        if case["prompt_2"]:
            found.add("one prompt for both towers", moved(
                reference, record, case, embeddings=reference.embeddings(
                    case | dict(prompt_2=None))))
            found.add("prompts swapped", moved(
                reference, record, case, embeddings=reference.embeddings(
                    case | dict(prompt=case["prompt_2"], prompt_2=case["prompt"]))))
        if case["negative_2"]:
            found.add("one negative for both towers", moved(
                reference, record, case, embeddings=reference.embeddings(
                    case | dict(negative_2=None))))
        if reference.guided(case) and not case["negative"]:
            positive, negative = reference.embeddings(case)
            other = (reference.encode("", windows=case["windows"]) if reference.zeros_for(case)
                     else tuple(torch.zeros_like(t) if t is not None else t for t in positive))
            kind = "encoded" if reference.zeros_for(case) else "zeroed"
            found.add(f"empty negative {kind}", moved(
                reference, record, case, embeddings=(positive, (other[0], negative[1]))))
            if reference.is_xl:
                found.add(f"empty negative's pooled {kind}", moved(
                    reference, record, case, embeddings=(positive, (negative[0], other[1]))))
    case = reference.runs[0]
    for index, tower in enumerate(reference.towers):
        config = tower.inner.config
        heads = [n for n in range(2, config.hidden_size // 2)
                 if config.hidden_size % n == 0 and n != config.num_attention_heads]
        act = "gelu" if config.hidden_act == "quick_gelu" else "quick_gelu"
        changes = {
            "another number of heads": dict(num_attention_heads=heads[0]),
            "another activation": dict(hidden_act=act),
        }
        original = tower.model, tower.inner
        for what, change in changes.items():
            other = copy.deepcopy(tower.model.config)
            other.update(change)
            model = type(tower.model)(other).eval()
            model.load_state_dict(tower.model.state_dict())
            tower.model, tower.inner = model, getattr(model, "text_model", model)
            embeddings = reference.embeddings(case)
            tower.model, tower.inner = original
            found.add(f"tower {index + 1}: {what}", moved(
                reference, record, case, embeddings=embeddings))


def input_mistakes(reference, record, found):
    """Makes mistakes in the inputs of the UNet other than the text."""
    case = reference.runs[0]
    if reference.guided(case) or reference.unet.config.time_cond_proj_dim:
        found.add("guidance less by 0.5", moved(
            reference, record, case | dict(guidance=case["guidance"] - 0.5)))
    other = case | dict(prompt="a red car")
    found.add("another prompt", moved(
        reference, record, case, embeddings=reference.embeddings(other)))
    if case["guidance"] > 1 and reference.guided(case):
        other = case | dict(negative="a red car")
        found.add("another negative prompt", moved(
            reference, record, case, embeddings=reference.embeddings(other)))
    for case in reference.runs:
        name = case["name"]
        if "image_guidance" in case and reference.guided(case):
            for what, scale in (("of 1", 1.0), ("equal to the text's", case["guidance"])):
                found.add(f"image guidance {what}", moved(
                    reference, record, case | dict(image_guidance=scale)))
        if "switch" in case:
            handed = reference.handed(case)
            for what, change in (("early", -0.15), ("late", 0.1)):
                found.add(f"the refiner too {what}", moved(
                    reference, record, case, image=handed,
                    denoising_start=case["switch"] + change))
            plain = {k: v for k, v in case.items() if k != "switch"}
            found.add("the base alone", relative(
                record.tensors[f"run.{name}.latents"], reference.base.run(plain)))
        for what, edit in edits(reference, case).items():
            with unet_inputs(reference.unet, edit):
                found.add(what, moved(reference, record, case))


def image_mistakes(reference, record, found):
    """Makes mistakes in the scaling of the final latents, and measures the image."""
    name = f"run.{reference.runs[0]['name']}"
    latents = record.tensors[f"{name}.latents"]
    config = reference.vae.config
    image = reference.decode(latents)
    others = {"scaling_factor": 2 * config.scaling_factor}
    if config.get("latents_mean"):
        others |= dict(latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    for key, other in others.items():
        value = config[key]
        reference.vae.register_to_config(**{key: other})
        found.add(f"image: another {key}", relative(image, reference.decode(latents)))
        reference.vae.register_to_config(**{key: value})


def edits(reference, case):
    """Returns wrong inputs of the UNet by name, for one run."""
    found = {}
    if reference.is_xl:
        found |= size_edits(reference, case)
    if reference.unet.config.time_cond_proj_dim:
        found |= guidance_edits(reference, case)
    if "picture" in case:
        found |= extra_edits(reference, case)
    if reference.shape["scheduler"][0].startswith("EDM"):
        found |= timestep_edits()
    return found


def timestep_edits():
    """Returns wrong timesteps for EDM, whose timestep is 0.25 · ln σ."""

    def changed(change):
        def edit(kwargs):
            kwargs["timestep"] = change(kwargs["timestep"])

        return edit

    wrong = {
        "ln σ": lambda timestep: 4 * timestep,
        "σ": lambda timestep: torch.exp(4 * timestep),
        "a whole number": lambda timestep: timestep.round(),
    }
    return {f"timestep: {what}": changed(change) for what, change in wrong.items()}


def extra_edits(reference, case):
    """Returns mistakes in the channels that follow the noisy latents."""
    channels = reference.vae.config.latent_channels
    factor = reference.vae.config.scaling_factor

    def changed(change):
        def edit(kwargs):
            sample = kwargs["sample"]
            kwargs["sample"] = change(sample[:, :channels], sample[:, channels:])

        return edit

    def with_extra(change):
        return changed(lambda noisy, extra: torch.cat([noisy, change(extra)], dim=1))

    def scaled_with_noise(noisy, extra):
        scheduler = reference.pipeline.scheduler
        sigma = scheduler.sigmas[scheduler.step_index]
        return torch.cat([noisy, extra / (sigma**2 + 1) ** 0.5], dim=1)

    wrong = {
        "first": changed(lambda noisy, extra: torch.cat([extra, noisy], dim=1)),
        "zeros": with_extra(torch.zeros_like),
    }
    if "image_guidance" in case:
        wrong |= {
            "times the scaling factor": with_extra(lambda extra: extra * factor),
            "scaled with the noise": changed(scaled_with_noise),
        }
        if reference.guided(case):
            wrong |= {
                "in every row": with_extra(lambda extra: extra[:1].expand_as(extra)),
                "in the first row only": with_extra(
                    lambda extra: torch.cat([extra[:1], torch.zeros_like(extra[1:])])),
            }
    else:
        wrong |= {
            "mask inverted": with_extra(
                lambda extra: torch.cat([1 - extra[:, :1], extra[:, 1:]], dim=1)),
            "mask last": with_extra(
                lambda extra: torch.cat([extra[:, 1:], extra[:, :1]], dim=1)),
            "masked latents unscaled": with_extra(
                lambda extra: torch.cat([extra[:, :1], extra[:, 1:] / factor], dim=1)),
        }
        if reference.guided(case):
            wrong["zeros for the negative"] = with_extra(
                lambda extra: torch.cat([torch.zeros_like(extra[:1]), extra[1:]]))
    return {f"extra channels: {what}": edit for what, edit in wrong.items()}


def guidance_edits(reference, case):
    """Returns wrong guidance inputs. Right are the sines, then the cosines, of (guidance - 1) ·
    1000."""
    width = reference.unet.config.time_cond_proj_dim

    def sinusoids(scale, width=width):
        scale = torch.tensor(float(scale)).repeat(1)
        return reference.pipeline.get_guidance_scale_embedding(scale, embedding_dim=width)

    guidance = case["guidance"] - 1
    right = sinusoids(guidance)
    wrong = {
        "the guidance itself": sinusoids(guidance + 1),
        "the guidance less 2": sinusoids(guidance - 1),
        "not times 1000": sinusoids(guidance / 1000),
        "cosines first": right.roll(width // 2, dims=1),
        "frequencies over half the width": torch.cat(
            [half[:, : width // 2] for half in sinusoids(guidance, width + 2).chunk(2, dim=1)], 1),
        "none": torch.zeros_like(right),
    }

    def replaced(other):
        def edit(kwargs):
            kwargs["timestep_cond"] = other.to(kwargs["sample"].dtype)

        return edit

    return {f"guidance input: {what}": replaced(other) for what, other in wrong.items()
            if not torch.equal(other, right)}


def size_edits(reference, case):
    """Returns wrong time ids. The right order is height, width, top, left and the rest."""
    ids = []
    with unet_inputs(reference.unet, lambda kwargs: ids.append(kwargs["added_cond_kwargs"])):
        reference.run(case)
    ids = ids[0]["time_ids"]

    def replaced(other):
        def edit(kwargs):
            kwargs["added_cond_kwargs"]["time_ids"] = other.to(kwargs["sample"].dtype)

        return edit

    orders = {
        "width before height": [1, 0, 2, 3, 4, 5],
        "left before top": [0, 1, 3, 2, 4, 5],
        "target's width before its height": [0, 1, 2, 3, 5, 4],
        "target before original": [4, 5, 2, 3, 0, 1],
        "crop first": [2, 3, 0, 1, 4, 5],
        "crop last": [0, 1, 4, 5, 2, 3],
    }
    wrong = {}
    for what, order in orders.items():
        if ids.shape[1] == 5:
            order = [i for i in order if i < 5]
        wrong[f"ids: {what}"] = ids[:, order]
    (width, height) = case["size"]
    if ids.shape[1] == 6:
        default = torch.tensor([height, width, 0, 0, height, width], dtype=ids.dtype)
        wrong["ids: the default ones"] = default.expand_as(ids)
    else:
        wrong["ids: score first"] = ids[:, [4, 0, 1, 2, 3]]
        score = ids[-1:, 4:].expand(len(ids), 1)
        wrong["ids: one score for both"] = torch.cat([ids[:, :4], score], dim=1)
    if len(ids) == 2:
        wrong["ids: the positive's for both"] = ids[1:].expand_as(ids)
        wrong["ids: rows swapped"] = ids.flip(0)
    wrong["ids: zeros"] = torch.zeros_like(ids)
    return {k: replaced(other) for k, other in wrong.items() if not torch.equal(other, ids)}


def other_unet(reference, changes):
    """Returns the UNet with other configuration values. Missing weights are made by the rule."""
    unet = diffusers.UNet2DConditionModel(**reference.shape["unet"] | changes)
    parts = recipes_of({"unet": unet}, 5_000_000, reference.shape["knobs"])
    filled({"unet": unet}, parts)
    missing, unexpected = unet.load_state_dict(reference.unet.state_dict(), strict=False)
    assert not unexpected and all(name.startswith("mid_block") for name in missing)
    return unet.eval()


def unet_mistakes(reference, record, found):
    """Makes mistakes in the configuration of the UNet."""
    case = reference.runs[0]
    config = reference.unet.config
    widths = config.block_out_channels
    heads = config.attention_head_dim
    heads = [heads] * len(widths) if isinstance(heads, int) else list(heads)
    tried = [[heads[0]] * len(widths), [width // head for width, head in zip(widths, heads)]]
    for level, kind in enumerate(config.down_block_types):
        if "CrossAttn" in kind:
            others = [h for h in range(1, widths[level]) if widths[level] % h == 0]
            for other in others[max(others.index(heads[level]) - 1, 0):][:3]:
                tried.append(heads[:level] + [other] + heads[level + 1:])
    for other in tried:
        if other != heads and all(width % h == 0 for width, h in zip(widths, other)):
            unet = other_unet(reference, dict(attention_head_dim=other))
            found.add("another number of heads", moved(reference, record, case, unet=unet))
    for key in ("flip_sin_to_cos", "freq_shift"):
        value = {"flip_sin_to_cos": True, "freq_shift": 0} | reference.shape["unet"]
        unet = other_unet(reference, {key: type(value[key])(1 - value[key])})
        found.add(f"other {key}", moved(reference, record, case, unet=unet))
    if any(reference.shape["unet"].get("only_cross_attention", [])):
        unet = other_unet(reference, dict(only_cross_attention=False))
        found.add("self-attention in every level", moved(reference, record, case, unet=unet))
    if reference.is_xl:
        pooled = reference.shape["text_2"]["projection_dim"]

        def sizes_first(module, args):
            return (torch.cat([args[0][:, pooled:], args[0][:, :pooled]], dim=1),)

        handle = reference.unet.add_embedding.register_forward_pre_hook(sizes_first)
        found.add("sizes before pooled", moved(reference, record, case))
        handle.remove()
        sinusoids = reference.unet.add_time_proj
        sinusoids.flip_sin_to_cos = not sinusoids.flip_sin_to_cos
        found.add("sizes' sine before cosine", moved(reference, record, case))
        sinusoids.flip_sin_to_cos = not sinusoids.flip_sin_to_cos
    if reference.shape["unet"].get("mid_block_type", "") is None:
        unet = other_unet(reference, dict(mid_block_type="UNetMidBlock2DCrossAttn"))
        found.add("a middle block", moved(reference, record, case, unet=unet))


def left_out(reference, record):
    """Leaves out each residual branch of each network in the first run."""
    case, found = reference.runs[0], {}
    for branch, module, hook in residual(reference.unet):
        with hooked(module, hook):
            found[f"unet.{branch}"] = moved(reference, record, case)
    for index, tower in enumerate(reference.towers):
        last = f"layers.{tower.inner.config.num_hidden_layers - 1}."
        for branch, module, hook in residual(tower.inner):
            with hooked(module, hook):
                far = moved(reference, record, case)
            if tower.penultimate and last in branch and index + 1 < len(reference.towers):
                assert far == 0, "the last layer of the first tower is not used"
            else:
                found[f"tower {index + 1}.{branch}"] = far
    return found


def rounded(reference, record):
    """Returns the distances between runs and calls in double precision and the recorded ones."""
    runs, calls = {}, {}
    with reference.doubled():
        for case in reference.runs:
            runs[case["name"]] = moved(reference, record, case, dtype=torch.float64)
        for call in record.calls:
            name, tensors = call["name"], record.tensors
            sample = tensors[f"{name}.sample"].double()
            tokens = [tensors[f"{c}.tokens"] for c in call["context"] if c]
            rows = [tensors[f"{c}.tokens"] if c else torch.zeros_like(tokens[-1])
                    for c in call["context"]]
            options = {}
            if f"{name}.guidance" in tensors:
                options["timestep_cond"] = tensors[f"{name}.guidance"].double()
            if f"{name}.time_ids" in tensors:
                pooled = [tensors[f"{c}.pooled"] for c in call["context"] if c]
                pooled = [tensors[f"{c}.pooled"] if c else torch.zeros_like(pooled[-1])
                          for c in call["context"]]
                options["added_cond_kwargs"] = dict(
                    text_embeds=torch.cat(pooled).double(),
                    time_ids=tensors[f"{name}.time_ids"].double())
            output = reference.unet(
                sample, torch.tensor(call["timestep"]), torch.cat(rows).double(), **options).sample
            calls[name] = relative(output, tensors[f"{name}.output"])
        for text in record.texts:
            wrong = {}
            if text["clip_skip"]:
                towers = range(len(reference.towers))
                wrong["layer"] = {index: -text["clip_skip"] for index in towers}
            found = reference.encode(text["prompt"], text["prompt_2"], text["windows"], **wrong)
            for kind, tensor in zip(("tokens", "pooled"), found):
                if tensor is not None:
                    name = f"{text['name']}.{kind}"
                    calls[name] = relative(tensor, record.tensors[name])
    for case in reference.runs:
        runs[f"{case['name']}, stirred"] = moved(reference, record, case, stir=1e-6)
    return dict(runs=runs, calls=calls)
