"""Makes the golden values of `families/`: every family of UNets that is built like Stable Diffusion.

    families.py [--shape NAME …]

`README.md` describes the files, `family_shapes.py` the models. The script asserts that a single
mistake in a text encoder, in an input of the UNet or in its configuration moves the final latents
by at least ten times the tolerance of the Rust tests, and that rounding stays well within it.
"""

import argparse
import contextlib
import copy
import functools
import json
import math
import os
import shutil
import tempfile

import diffusers
import torch
from diffusers.schedulers import scheduling_edm_euler
from diffusers.schedulers import scheduling_euler_ancestral_discrete, scheduling_lcm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from family_shapes import SHAPES
from make import (
    HERE,
    TOLERANCE,
    filled,
    hooked,
    recipes_of,
    relative,
    residual,
    settle,
    token_ids,
    write_cases,
    write_model,
)
from shapes import BOS, EOS

LEAST = 10 * TOLERANCE  # what a mistake must move the final latents by
MOST = 0.3 * TOLERANCE  # what rounding may move them by
ONE_CALL = 0.4e-5       # what rounding may move one call of the UNet by
FIRST_SEED = 1_000_000  # above all seeds of `make.py`


def main():
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES))
    arguments = arguments.parse_args()
    settle()
    for name in arguments.shape:
        golden(name)


def golden(name):
    shape, folder = SHAPES[name], HERE / "families" / name
    folder.mkdir(parents=True, exist_ok=True)
    reference = Reference(name)
    write_model(folder, reference.models, reference.parts)
    reference.pipeline.save_config(folder)
    for index, config in reference.tokenizer_configs.items():
        suffix = "_2" if index else ""
        (folder / f"tokenizer_config{suffix}.json").write_text(json.dumps(config, indent=1) + "\n")

    record = Record(reference)
    runs = [record.run(case) for case in reference.runs]
    record.odd_call(runs[0])
    for clip_skip in shape.get("clip_skips", ()):
        first = reference.runs[0]
        record.text(first["prompt"], first["prompt_2"], first["windows"], clip_skip)
    cases = dict(pipeline=shape["pipeline"], text=record.texts, unet=record.calls, runs=runs)
    write_cases(folder, record.tensors, cases)
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1000
    figures = check(reference, record)
    print(f"{name}: {size:.0f} kB", {k: float(f"{v:.2g}") for k, v in figures.items()}, flush=True)


# ---------------------------------------------------------------- models


def configured(shape):
    """The networks of a shape, weights unset, and its scheduler."""
    models = {}
    for part, kind in (("text", CLIPTextModel), ("text_2", CLIPTextModelWithProjection)):
        if part in shape:
            config = CLIPTextConfig(**shape[part], architectures=[kind.__name__])
            models[part.replace("text", "text_encoder")] = kind(config)
    class_name, scheduler = shape["scheduler"]
    return models | {
        "unet": diffusers.UNet2DConditionModel(**shape["unet"]),
        "vae": getattr(diffusers, shape.get("vae_class", "AutoencoderKL"))(**shape["vae"]),
        "scheduler": getattr(diffusers, class_name)(**scheduler),
    }


def first_seed(name):
    return FIRST_SEED + 10_000 * list(SHAPES).index(name)


def override(recipes, shape):
    """Other scales and offsets for tensors of the autoencoder that the rule does not know."""
    for recipe in recipes:
        recipe |= shape.get("overrides", {}).get(recipe["name"], {})


class Tower:
    """A text encoder with its tokenizer, and the rules by which the pipelines read it."""

    def __init__(self, tokenizer, model, penultimate):
        self.tokenizer, self.model, self.penultimate = tokenizer, model, penultimate
        self.inner = getattr(model, "text_model", model)

    def windows(self, text, count):
        """Ids of `text` in windows of 75 tokens between start and end; empty windows up to `count`."""
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        stretches = [ids[at : at + 75] for at in range(0, max(len(ids), 1), 75)]
        assert len(stretches) <= count, f"{text!r} needs {len(stretches)} windows"
        stretches += [[]] * (count - len(stretches))
        pad = self.tokenizer.pad_token_id
        windows = [[BOS, *s, EOS] + [pad] * (75 - len(s)) for s in stretches]
        if count == 1:
            assert windows == token_ids(self.tokenizer, text).tolist()
        return torch.tensor(windows)

    def states(self, ids, norm=None, layer=None, pooled="end"):
        """Token states, one window after the other, and the pooled state of the first window.

        By default they are those of the pipelines; the arguments make one mistake each."""
        output = self.model(ids, output_hidden_states=True)
        index = layer or (-2 if self.penultimate else -1)
        state = output.hidden_states[index]
        if norm is None:
            norm = not self.penultimate
        state = self.inner.final_layer_norm(state) if norm else state
        state = state.reshape(1, -1, state.shape[-1])
        if not hasattr(output, "text_embeds"):
            return state, None
        return state, self.pooled(ids, output, pooled)

    def pooled(self, ids, output, mistake):
        if mistake == "end":
            return output.text_embeds[:1]
        window = 1 if mistake == "second window" else 0
        at = 76 if mistake == "last position" else ids[window].tolist().index(EOS)
        at = at - 1 if mistake == "position before" else at
        last = output.hidden_states[-2 if mistake == "penultimate" else -1]
        if mistake != "no final norm":
            last = self.inner.final_layer_norm(last)
        state = last[window : window + 1, at]
        return state if mistake == "unprojected" else self.model.text_projection(state)


class Reference:
    """The pipeline of diffusers around the models of one shape."""

    def __init__(self, name):
        self.name, self.shape = name, SHAPES[name]
        models = configured(self.shape)
        self.parts = recipes_of(models, first_seed(name), self.shape["knobs"])
        override(self.parts["vae"], self.shape)
        self.base = Reference(self.shape["base"]) if "base" in self.shape else None
        if self.base:
            # Both models of such a pair have the same autoencoder.
            self.parts["vae"] = self.base.parts["vae"]
        self.models = filled(models, self.parts)
        self.unet, self.vae = self.models["unet"], self.models["vae"]
        for model in self.models.values():
            if isinstance(model, torch.nn.Module):
                model.eval()
        self.is_xl = "XL" in self.shape["pipeline"]
        self.tokenizer_configs = {}
        self.towers = [self.tower(part) for part in ("text_encoder", "text_encoder_2")
                       if part in self.models]
        self.pipeline = self.pipeline_of()
        self.factor = self.pipeline.vae_scale_factor
        self.runs = [dict(size=self.shape["size"], steps=self.shape["steps"],
                          guidance=self.shape["guidance"]) | run for run in self.shape["runs"]]

    def tower(self, part):
        index = int(part == "text_encoder_2")
        config = json.loads((HERE / "tokenizer" / "tokenizer_config.json").read_text())
        config["pad_token"] = self.shape["pads"][len(self.tokenizer_configs)]
        self.tokenizer_configs[index] = config
        with tempfile.TemporaryDirectory() as folder:
            for file in ("vocab.json", "merges.txt"):
                shutil.copy(HERE / "tokenizer" / file, folder)
            with open(f"{folder}/tokenizer_config.json", "w") as file:
                json.dump(config, file)
            tokenizer = CLIPTokenizer.from_pretrained(folder)
        return Tower(tokenizer, self.models[part], self.is_xl)

    def pipeline_of(self):
        parts = {k: self.models[k] for k in ("unet", "vae")}
        # Some pipelines write into the configuration of the scheduler they are given.
        scheduler = self.models["scheduler"]
        parts["scheduler"] = type(scheduler).from_config(scheduler.config)
        parts |= dict(text_encoder=self.models.get("text_encoder"), tokenizer=None)
        parts |= dict(text_encoder_2=self.models.get("text_encoder_2"), tokenizer_2=None)
        for index, tower in zip(self.tokenizer_configs, self.towers):
            parts["tokenizer_2" if index else "tokenizer"] = tower.tokenizer
        if self.is_xl:
            options = dict(add_watermarker=False) | self.shape["options"]
        else:
            del parts["text_encoder_2"], parts["tokenizer_2"]
            options = dict(safety_checker=None, feature_extractor=None,
                           requires_safety_checker=False)
        pipeline = getattr(diffusers, self.shape["pipeline"])(**parts, **options)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def guided(self, case):
        """Whether the pipeline calls the UNet for the negative prompt too."""
        if case.get("image_guidance", 1) < 1:
            return False
        return case["guidance"] > 1 and self.unet.config.time_cond_proj_dim is None

    def encode(self, text, text_2=None, windows=1, order=None, pad=None, pooled="end", **wrong):
        """The tokens that the UNet attends to, and the pooled state.

        `order` permutes the towers, `pad` pads all of them with another id; `pooled`, `norm` and
        `layer` are for the towers by index."""
        states, found = [], None
        texts = [text] if len(self.towers) == 1 else [text, text_2 or text]
        for index, (tower, text) in enumerate(zip(self.towers, texts)):
            ids = tower.windows(text, windows)
            if pad is not None:
                for window in ids:
                    window[window.tolist().index(EOS) + 1 :] = pad
            mistakes = {k: v[index] for k, v in wrong.items() if index in v}
            state, found = tower.states(ids, pooled=pooled, **mistakes)
            states.append(state)
        return torch.cat([states[i] for i in order or range(len(states))], dim=-1), found

    def zeros_for(self, case):
        return case["negative"] is None and self.shape.get("options", {}).get(
            "force_zeros_for_empty_prompt", False)

    def embeddings(self, case, **wrong):
        """Prompt and negative of a run, each as tokens and pooled."""
        positive = self.encode(case["prompt"], case["prompt_2"], case["windows"], **wrong)
        if not self.guided(case):
            return positive, None
        if self.zeros_for(case):
            return positive, tuple(torch.zeros_like(t) for t in positive)
        negative = case["negative"] or ""
        return positive, self.encode(
            negative, case["negative_2"] or negative, case["windows"], **wrong)

    def check_embeddings(self, case):
        """`embeddings` is what the pipeline makes of the prompts."""
        if case["windows"] > 1:
            return
        options = dict(prompt=case["prompt"], negative_prompt=case["negative"], device="cpu",
                       num_images_per_prompt=1, do_classifier_free_guidance=self.guided(case))
        if self.is_xl:
            options |= dict(prompt_2=case["prompt_2"], negative_prompt_2=case["negative_2"])
            found = self.pipeline.encode_prompt(**options)
            found = (found[0], found[2]), (found[1], found[3])
        elif hasattr(self.pipeline, "encode_prompt"):
            found = self.pipeline.encode_prompt(**options)
            found = (found[0], None), (found[1], None)
        else:
            return
        for ours, theirs in zip(self.embeddings(case), found):
            for a, b in zip(ours or (), theirs):
                assert a is b or torch.equal(a, b), case["name"]

    def noise(self, case, generator=None):
        """The first noise of a run, unscaled; draws from `generator`."""
        generator = generator or torch.Generator().manual_seed(case["seed"])
        width, height = case["size"]
        channels = self.vae.config.latent_channels
        shape = (1, channels, height // self.factor, width // self.factor)
        return torch.randn(shape, generator=generator)

    def scheduler(self, case):
        config = self.models["scheduler"].config
        kind = getattr(diffusers, case["scheduler"]) if case["scheduler"] else type(
            self.models["scheduler"])
        return kind.from_config(config, **case["changes"])

    def run(self, case, embeddings=None, unet=None, dtype=torch.float32, stir=0.0,
            output_type="latent", **rest):
        """The final latents of a run."""
        (tokens, pooled), negative = embeddings or self.embeddings(case)
        generator = torch.Generator().manual_seed(case["seed"])
        noise = self.noise(case, generator).to(dtype)
        if stir:
            stirred = torch.randn(noise.shape, generator=torch.Generator().manual_seed(1))
            noise = noise * (1 + stir * stirred)
        options = dict(prompt_embeds=tokens.to(dtype), guidance_scale=case["guidance"],
                       num_inference_steps=case["steps"], generator=generator, latents=noise,
                       output_type=output_type)
        if negative:
            options["negative_prompt_embeds"] = negative[0].to(dtype)
        if self.is_xl:
            options["pooled_prompt_embeds"] = pooled.to(dtype)
            if negative:
                options["negative_pooled_prompt_embeds"] = negative[1].to(dtype)
            options |= case["sizes"]
        if "picture" in case:
            options |= self.extra_inputs(case, dtype)
        if "switch" in case:
            if "image" not in rest:
                rest["image"] = self.handed(case, dtype, stir)
            rest.setdefault("denoising_start", case["switch"])
            del options["latents"]
        elif "image_guidance" not in case:  # instruct-pix2pix takes the size of the picture
            options |= dict(width=case["size"][0], height=case["size"][1])
        pipeline = self.pipeline
        pipeline.scheduler, pipeline.unet = self.scheduler(case), unet or self.unet
        with steady_noise():
            return pipeline(**options | rest).images

    @functools.lru_cache
    def picture(self, seed, width, height):
        """A picture in [-1, 1] with a wide range of colours, and a mask with a slanted edge."""
        generator = torch.Generator().manual_seed(seed)
        rough = torch.randn((1, 3, height // 8, width // 8), generator=generator)
        smooth = torch.nn.functional.interpolate(rough, size=(height, width), mode="bilinear")
        rows, columns = torch.arange(height).view(-1, 1), torch.arange(width)
        mask = (3 * rows + 2 * columns > height + width).float().view(1, 1, height, width)
        return torch.tanh(smooth), mask

    def extra(self, case):
        """The channels that follow the noisy latents: mask and masked latents, or the picture's."""
        picture, mask = self.picture(case["picture"], *case["size"])
        if "image_guidance" in case:
            return self.vae.encode(picture).latent_dist.mode()
        latents = self.vae.encode(picture * (mask < 0.5)).latent_dist.mode()
        small = torch.nn.functional.interpolate(mask, size=latents.shape[2:])
        return torch.cat([small, latents * self.vae.config.scaling_factor], dim=1)

    def extra_inputs(self, case, dtype):
        """The arguments by which the pipeline gets these channels."""
        extra = self.extra(case).to(dtype)
        if "image_guidance" in case:
            return dict(image=extra, image_guidance_scale=case["image_guidance"])
        _, mask = self.picture(case["picture"], *case["size"])
        return dict(image=torch.zeros_like(extra[:, 1:]), mask_image=mask, strength=1.0,
                    masked_image_latents=extra[:, 1:])

    def rows(self, case, prompt, negative):
        """Prompt and negative in the order in which the UNet gets them."""
        if not self.guided(case):
            return [prompt]
        return [prompt, negative, negative] if "image_guidance" in case else [negative, prompt]

    def handed(self, case, dtype=torch.float32, stir=0.0):
        """The latents that the base model hands to the refiner."""
        case = {k: v for k, v in case.items() if k != "switch"} | dict(switched=case["switch"])
        return self.base.run(case, dtype=dtype, stir=stir, denoising_end=case["switched"])

    def decode(self, latents):
        """The image of final latents, clamped as for a picture."""
        config = self.vae.config
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean:
            mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (mean, std))
            latents = latents * std / config.scaling_factor + mean
        else:
            latents = latents / config.scaling_factor + (config.get("shift_factor") or 0)
        return self.vae.decode(latents).sample.clamp(-1, 1)

    @contextlib.contextmanager
    def doubled(self):
        networks = [self.unet] + [tower.model for tower in self.towers]
        if self.base:
            networks += [self.base.unet] + [tower.model for tower in self.base.towers]
        for network in networks:
            network.double()
        try:
            yield
        finally:
            for network in networks:
                network.float()


@contextlib.contextmanager
def steady_noise():
    """Draws the noise of a step in float32, so that runs in double precision see the same noise."""
    modules = (scheduling_euler_ancestral_discrete, scheduling_lcm, scheduling_edm_euler)
    originals = [module.randn_tensor for module in modules]

    def randn_tensor(shape, dtype=None, **rest):
        return originals[0](shape, dtype=torch.float32, **rest).to(dtype)

    for module in modules:
        module.randn_tensor = randn_tensor
    try:
        yield
    finally:
        for module, original in zip(modules, originals):
            module.randn_tensor = original


@contextlib.contextmanager
def unet_inputs(unet, edit):
    """Passes the arguments of each call of the UNet through `edit`, which may change the dict."""

    def hook(module, args, kwargs):
        sample, timestep = args
        kwargs = kwargs | dict(sample=sample, timestep=timestep)
        if kwargs.get("added_cond_kwargs"):
            kwargs["added_cond_kwargs"] = dict(kwargs["added_cond_kwargs"])
        edit(kwargs)
        return (), kwargs

    handle = unet.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


# ---------------------------------------------------------------- what is recorded


class Record:
    """The tensors and the cases of a shape."""

    def __init__(self, reference):
        self.reference = reference
        self.tensors, self.texts, self.calls = {}, [], []

    def text(self, prompt, prompt_2, windows, clip_skip=None):
        """The name of a pair of prompts, encoded once."""
        case = dict(prompt=prompt, prompt_2=prompt_2, windows=windows, clip_skip=clip_skip)
        for text in self.texts:
            if {k: text[k] for k in case} == case:
                return text["name"]
        name = f"text.{len(self.texts)}"
        self.texts.append(dict(name=name) | case)
        wrong = {}
        if clip_skip:
            wrong["layer"] = {index: -clip_skip for index in range(len(self.reference.towers))}
        tokens, pooled = self.reference.encode(prompt, prompt_2, windows, **wrong)
        self.tensors[f"{name}.tokens"] = tokens
        if pooled is not None:
            self.tensors[f"{name}.pooled"] = pooled
        return name

    def run(self, case):
        reference = self.reference
        reference.check_embeddings(case)
        name, (width, height) = f"run.{case['name']}", case["size"]
        prompt = self.text(case["prompt"], case["prompt_2"], case["windows"])
        negative = None
        if reference.guided(case) and not reference.zeros_for(case):
            text = case["negative"] or ""
            negative = self.text(text, case["negative_2"], case["windows"])
        noise = f"noise.{case['seed']}.{width}x{height}"
        self.tensors[noise] = reference.noise(case)

        seen = []
        with unet_inputs(reference.unet, lambda kwargs: seen.append(dict(kwargs))):
            latents = reference.run(case)
        self.tensors[f"{name}.latents"] = latents
        image = reference.run(case, output_type="pt") * 2 - 1
        assert (image - reference.decode(latents)).abs().max() < 1e-5, name
        self.tensors[f"{name}.image"] = reference.decode(latents).to(torch.float16)
        contexts = reference.rows(case, prompt, negative)
        # The calls of the other runs differ in what goes in, which their first call shows.
        for index in sorted({0, len(seen) // 2} if not self.calls else {0}):
            self.call(f"unet.{case['name']}.{index}", seen[index], contexts, case["guidance"])
        scheduler = reference.scheduler(case)
        found = dict(
            name=name, prompt=case["prompt"], prompt_2=case["prompt_2"],
            negative=case["negative"], negative_2=case["negative_2"], windows=case["windows"],
            embeddings=dict(prompt=prompt, negative=negative),
            guided=reference.guided(case), scheduler=type(scheduler).__name__,
            scheduler_changes=case["changes"], steps=case["steps"],
            timesteps=[float(call["timestep"]) for call in seen],
            width=width, height=height, guidance=case["guidance"], seed=case["seed"], noise=noise)
        if "picture" in case:
            picture, mask = reference.picture(case["picture"], *case["size"])
            extra = reference.extra(case)
            assert torch.equal(seen[0]["sample"][:1, -extra.shape[1] :], extra)
            self.tensors[f"{name}.extra"] = extra
            self.tensors[f"{name}.picture"] = picture
            if "image_guidance" in case:
                found["image_guidance"] = case["image_guidance"]
            else:
                self.tensors[f"{name}.mask"] = mask
        if "switch" in case:
            found |= dict(base=reference.shape["base"], switch=case["switch"])
            base_calls = []
            with unet_inputs(reference.base.unet, lambda kwargs: base_calls.append(dict(kwargs))):
                self.tensors[f"{name}.handed"] = reference.handed(case)
            found["base_timesteps"] = [float(call["timestep"]) for call in base_calls]
        if reference.is_xl:
            for key, value in case["sizes"].items():
                key = key.replace("crops_coords_top_left", "crop")
                # The pipeline takes height and width, or y and x.
                found[key] = [value[1], value[0]]
            self.tensors[f"{name}.time_ids"] = seen[0]["added_cond_kwargs"]["time_ids"]
        return found

    def call(self, name, kwargs, contexts, guidance):
        """One call of the UNet; its context is named by the texts, of which None is zeros."""
        rows = []
        for context in contexts:
            like = kwargs["encoder_hidden_states"][:1]
            rows.append(self.tensors[f"{context}.tokens"] if context else torch.zeros_like(like))
        assert torch.equal(torch.cat(rows), kwargs["encoder_hidden_states"])
        self.tensors[f"{name}.sample"] = kwargs["sample"].clone()
        added = kwargs.get("added_cond_kwargs") or {}
        if "time_ids" in added:
            self.tensors[f"{name}.time_ids"] = added["time_ids"].clone()
        found = dict(name=name, timestep=float(kwargs["timestep"]), context=contexts)
        if kwargs.get("timestep_cond") is not None:
            found["guidance"] = guidance
            self.tensors[f"{name}.guidance"] = kwargs["timestep_cond"].clone()
        self.tensors[f"{name}.output"] = self.reference.unet(**kwargs | dict(return_dict=False))[0]
        self.calls.append(found)

    def odd_call(self, run):
        """A call of an odd and tiny size, at a timestep that is no integer, with other numbers."""
        seen = []
        reference = self.reference
        case = next(r for r in reference.runs if f"run.{r['name']}" == run["name"])
        with unet_inputs(reference.unet, lambda kwargs: seen.append(dict(kwargs))):
            reference.run(case)
        kwargs, generator = seen[0], torch.Generator().manual_seed(17)
        rows, channels = kwargs["sample"].shape[:2]
        kwargs["sample"] = torch.randn((rows, channels, 7, 5), generator=generator)
        if not reference.shape["scheduler"][0].startswith("EDM"):
            kwargs["timestep"] = torch.tensor(417.25)
        added = kwargs.get("added_cond_kwargs") or {}
        if "time_ids" in added:
            ids = added["time_ids"]
            factor = torch.arange(1, ids.numel() + 1, dtype=ids.dtype).reshape(ids.shape)
            kwargs["added_cond_kwargs"] = added | dict(time_ids=ids + 13.5 * factor)
        contexts = reference.rows(case, **run["embeddings"])
        self.call("unet.odd", kwargs, contexts, case["guidance"])


# ---------------------------------------------------------------- can the cases fail?


def check(reference, record):
    """Asserts that the runs of a shape move with each mistake and stay when rounded; the figures."""
    wrong = {}
    for kind in (text_mistakes, input_mistakes, unet_mistakes):
        found = kind(reference, record)
        wrong |= found
    wrong |= image_mistakes(reference, record)
    branches = left_out(reference, record)
    rounding = rounded(reference, record)
    if os.environ.get("VERBOSE"):
        print(reference.name, wrong, branches, rounding)
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
    return {
        f"least mistake ({smallest})": wrong[smallest],
        "mistakes": len(wrong),
        f"least branch ({branch})": branches[branch],
        "rounding of runs": max(rounding["runs"].values()),
        "rounding of calls": max(rounding["calls"].values()),
        "least deviation": min(spread), "largest deviation": max(spread),
    }


def case_named(reference, name):
    return next((case for case in reference.runs if case["name"] == name), None)


def moved(reference, record, case, **options):
    """How far a run with a mistake ends from the recorded one."""
    return relative(record.tensors[f"run.{case['name']}.latents"], reference.run(case, **options))


def text_mistakes(reference, record):
    """Mistakes in the text encoders, each on the first run."""
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
    found = {what: moved(reference, record, case, embeddings=reference.embeddings(case, **how))
             for what, how in wrong.items()}
    for case in reference.runs:
        name = case["name"]
        if case["windows"] > 1:
            found[f"{name}: pooled of the second window"] = moved(
                reference, record, case,
                embeddings=reference.embeddings(case, pooled="second window"))
            positive, negative = reference.embeddings(case)
            cut = [(s[0][:, :77], s[1]) if s else None for s in (positive, negative)]
            found[f"{name}: only one window"] = moved(reference, record, case, embeddings=cut)
        if case["prompt_2"]:
            found[f"{name}: one prompt for both towers"] = moved(
                reference, record, case, embeddings=reference.embeddings(
                    case | dict(prompt_2=None)))
            found[f"{name}: prompts swapped"] = moved(
                reference, record, case, embeddings=reference.embeddings(
                    case | dict(prompt=case["prompt_2"], prompt_2=case["prompt"])))
        if case["negative_2"]:
            found[f"{name}: one negative for both towers"] = moved(
                reference, record, case, embeddings=reference.embeddings(
                    case | dict(negative_2=None)))
        if reference.guided(case) and not case["negative"]:
            positive, negative = reference.embeddings(case)
            other = (reference.encode("", windows=case["windows"]) if reference.zeros_for(case)
                     else tuple(torch.zeros_like(t) if t is not None else t for t in positive))
            kind = "encoded" if reference.zeros_for(case) else "zeroed"
            found[f"{name}: empty negative {kind}"] = moved(
                reference, record, case, embeddings=(positive, (other[0], negative[1])))
            if reference.is_xl:
                found[f"{name}: empty negative's pooled {kind}"] = moved(
                    reference, record, case, embeddings=(positive, (negative[0], other[1])))
    # Another count of heads, another activation, and each branch left out.
    case = reference.runs[0]
    for index, tower in enumerate(reference.towers):
        config = tower.inner.config
        heads = [n for n in range(2, config.hidden_size // 2)
                 if config.hidden_size % n == 0 and n != config.num_attention_heads]
        act = "gelu" if config.hidden_act == "quick_gelu" else "quick_gelu"
        changes = {f"{heads[0]} heads": dict(num_attention_heads=heads[0]), act: dict(hidden_act=act)}
        original = tower.model, tower.inner
        for what, change in changes.items():
            other = copy.deepcopy(tower.model.config)
            other.update(change)
            model = type(tower.model)(other).eval()
            model.load_state_dict(tower.model.state_dict())
            tower.model, tower.inner = model, getattr(model, "text_model", model)
            embeddings = reference.embeddings(case)
            tower.model, tower.inner = original
            found[f"tower {index + 1}: {what}"] = moved(
                reference, record, case, embeddings=embeddings)
    return found


def input_mistakes(reference, record):
    """Mistakes in the inputs of the UNet besides the text."""
    found = {}
    case = reference.runs[0]
    if reference.guided(case) or reference.unet.config.time_cond_proj_dim:
        found["guidance less by 0.5"] = moved(
            reference, record, case | dict(guidance=case["guidance"] - 0.5))
    other = case | dict(prompt="a red car")
    found["another prompt"] = moved(
        reference, record, case, embeddings=reference.embeddings(other))
    if case["guidance"] > 1 and reference.guided(case):
        other = case | dict(negative="a red car")
        found["another negative prompt"] = moved(
            reference, record, case, embeddings=reference.embeddings(other))
    for case in reference.runs:
        name = case["name"]
        if "image_guidance" in case and reference.guided(case):
            for scale in (1.0, case["guidance"]):
                found[f"{name}: image guidance {scale}"] = moved(
                    reference, record, case | dict(image_guidance=scale))
        if "switch" in case:
            handed = reference.handed(case)
            for switch in (case["switch"] - 0.15, case["switch"] + 0.1):
                found[f"{name}: the refiner from {switch:.2f} on"] = moved(
                    reference, record, case, image=handed, denoising_start=switch)
            plain = {k: v for k, v in case.items() if k != "switch"}
            found[f"{name}: the base alone"] = relative(
                record.tensors[f"run.{name}.latents"], reference.base.run(plain))
        for what, edit in edits(reference, case).items():
            with unet_inputs(reference.unet, edit):
                found[f"{case['name']}: {what}"] = moved(reference, record, case)
    return found


def image_mistakes(reference, record):
    """Mistakes between the final latents and the autoencoder, by what they do to the image."""
    name = f"run.{reference.runs[0]['name']}"
    latents = record.tensors[f"{name}.latents"]
    config, found = reference.vae.config, {}
    image = reference.decode(latents)
    others = {"scaling_factor": 2 * config.scaling_factor}
    if config.get("latents_mean"):
        others |= dict(latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    for key, other in others.items():
        value = config[key]
        reference.vae.register_to_config(**{key: other})
        found[f"image: another {key}"] = relative(image, reference.decode(latents))
        reference.vae.register_to_config(**{key: value})
    return found


def edits(reference, case):
    """Wrong inputs of the UNet by name, for one run."""
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
    """The timestep of EDM is 0.25 · ln σ."""

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
    """Mistakes in the channels that follow the noisy latents."""
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
    """The guidance input is the sines, then the cosines, of (guidance - 1) · 1000."""
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
    """The UNet with another configuration and the same weights, those it lacks made by the rule."""
    unet = diffusers.UNet2DConditionModel(**reference.shape["unet"] | changes)
    parts = recipes_of({"unet": unet}, 5_000_000, reference.shape["knobs"])
    filled({"unet": unet}, parts)
    missing, unexpected = unet.load_state_dict(reference.unet.state_dict(), strict=False)
    assert not unexpected and all(name.startswith("mid_block") for name in missing)
    return unet.eval()


def unet_mistakes(reference, record):
    """Mistakes in the configuration of the UNet."""
    case, found = reference.runs[0], {}
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
            found[f"heads {other} for {heads}"] = moved(reference, record, case, unet=unet)
    for key in ("flip_sin_to_cos", "freq_shift"):
        value = {"flip_sin_to_cos": True, "freq_shift": 0} | reference.shape["unet"]
        unet = other_unet(reference, {key: type(value[key])(1 - value[key])})
        found[f"other {key}"] = moved(reference, record, case, unet=unet)
    if any(reference.shape["unet"].get("only_cross_attention", [])):
        unet = other_unet(reference, dict(only_cross_attention=False))
        found["self-attention in every level"] = moved(reference, record, case, unet=unet)
    if reference.is_xl:
        pooled = reference.shape["text_2"]["projection_dim"]

        def sizes_first(module, args):
            return (torch.cat([args[0][:, pooled:], args[0][:, :pooled]], dim=1),)

        handle = reference.unet.add_embedding.register_forward_pre_hook(sizes_first)
        found["sizes before pooled"] = moved(reference, record, case)
        handle.remove()
        sinusoids = reference.unet.add_time_proj
        sinusoids.flip_sin_to_cos = not sinusoids.flip_sin_to_cos
        found["sizes' sine before cosine"] = moved(reference, record, case)
        sinusoids.flip_sin_to_cos = not sinusoids.flip_sin_to_cos
    if reference.shape["unet"].get("mid_block_type", "") is None:
        unet = other_unet(reference, dict(mid_block_type="UNetMidBlock2DCrossAttn"))
        found["a middle block"] = moved(reference, record, case, unet=unet)
    return found


def left_out(reference, record):
    """The least that the first run moves by when a branch of a network is missing."""
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
    """How far runs and calls in double precision end from the recorded ones."""
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


if __name__ == "__main__":
    main()
