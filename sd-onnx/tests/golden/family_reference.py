"""The diffusers pipelines that `families.py` runs, with the models of `family_shapes.py`."""

import contextlib
import functools
import json
import shutil
import tempfile

import diffusers
import torch
from diffusers.schedulers import scheduling_edm_euler
from diffusers.schedulers import scheduling_euler_ancestral_discrete, scheduling_lcm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from family_shapes import SHAPES
from make import HERE, filled, recipes_of, token_ids
from shapes import BOS, EOS

FIRST_SEED = 1_000_000  # above all seeds of `make.py`


def configured(shape, device="cpu"):
    """Returns the networks of a shape on a device, with weights not set yet, and the scheduler."""
    models = {}
    with torch.device(device):
        for part, kind in (("text", CLIPTextModel), ("text_2", CLIPTextModelWithProjection)):
            if part in shape:
                config = CLIPTextConfig(**shape[part], architectures=[kind.__name__])
                models[part.replace("text", "text_encoder")] = kind(config)
        models["unet"] = diffusers.UNet2DConditionModel(**shape["unet"])
        autoencoder = getattr(diffusers, shape.get("vae_class", "AutoencoderKL"))
        models["vae"] = autoencoder(**shape["vae"])
    class_name, scheduler = shape["scheduler"]
    return models | {"scheduler": getattr(diffusers, class_name)(**scheduler)}


def first_seed(name):
    return FIRST_SEED + 10_000 * list(SHAPES).index(name)


def override(recipes, shape):
    """Sets the scale and the offset of autoencoder tensors that the rule does not cover."""
    for recipe in recipes:
        recipe |= shape.get("overrides", {}).get(recipe["name"], {})


class Tower:
    """A text encoder with its tokenizer.

    SDXL uses the penultimate layer without the final norm. The others use the last layer with it.
    """

    def __init__(self, tokenizer, model, penultimate):
        self.tokenizer, self.model, self.penultimate = tokenizer, model, penultimate
        self.inner = getattr(model, "text_model", model)

    def windows(self, text, count):
        """Splits `text` into windows of 75 tokens and adds empty windows up to `count`."""
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
        """Returns the token states of all windows, and the pooled state of the first window.

        Each argument except `ids` makes a mistake."""
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
        """Returns the pooled state if `mistake` is "end", or a wrong one."""
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
    """The diffusers pipeline with the models of one shape."""

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
        # Some pipelines change the configuration of their scheduler.
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
        """Returns whether the pipeline also calls the UNet for the negative prompt."""
        if case.get("image_guidance", 1) < 1:
            return False
        return case["guidance"] > 1 and self.unet.config.time_cond_proj_dim is None

    def encode(self, text, text_2=None, windows=1, order=None, pad=None, pooled="end", **wrong):
        """Returns the tokens that the UNet attends to, and the pooled state.

        Mistakes: `order` permutes the towers, `pad` is another padding id for all of them,
        `pooled` is for `Tower.pooled`, and `norm` and `layer` are dicts by tower for
        `Tower.states`."""
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
        """Returns the prompt and the negative prompt of a run, each as tokens and a pooled
        state."""
        positive = self.encode(case["prompt"], case["prompt_2"], case["windows"], **wrong)
        if not self.guided(case):
            return positive, None
        if self.zeros_for(case):
            return positive, tuple(torch.zeros_like(t) for t in positive)
        negative = case["negative"] or ""
        return positive, self.encode(
            negative, case["negative_2"] or negative, case["windows"], **wrong)

    def check_embeddings(self, case):
        """Asserts that `embeddings` returns the same as the pipeline."""
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
        """Draws the first noise of a run, unscaled, from `generator` or from the seed."""
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
        """Returns the final latents of a run."""
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
        elif self.is_xl or "image_guidance" not in case:  # with pix2pix, the picture has the size
            options |= dict(width=case["size"][0], height=case["size"][1])
        pipeline = self.pipeline
        pipeline.scheduler, pipeline.unet = self.scheduler(case), unet or self.unet
        with steady_noise():
            return pipeline(**options | rest).images

    @functools.lru_cache
    def picture(self, seed, width, height):
        """Returns a smooth picture from -1 to 1 and a mask with a slanted edge."""
        generator = torch.Generator().manual_seed(seed)
        rough = torch.randn((1, 3, height // 8, width // 8), generator=generator)
        smooth = torch.nn.functional.interpolate(rough, size=(height, width), mode="bilinear")
        rows, columns = torch.arange(height).view(-1, 1), torch.arange(width)
        mask = (3 * rows + 2 * columns > height + width).float().view(1, 1, height, width)
        return torch.tanh(smooth), mask

    def extra(self, case):
        """Returns the channels that follow the noisy latents."""
        picture, mask = self.picture(case["picture"], *case["size"])
        if "image_guidance" in case:
            return self.vae.encode(picture).latent_dist.mode()
        latents = self.vae.encode(picture * (mask < 0.5)).latent_dist.mode()
        small = torch.nn.functional.interpolate(mask, size=latents.shape[2:])
        return torch.cat([small, latents * self.vae.config.scaling_factor], dim=1)

    def extra_inputs(self, case, dtype):
        """Returns the arguments that pass these channels to the pipeline."""
        extra = self.extra(case).to(dtype)
        if "image_guidance" in case:
            return dict(image=extra, image_guidance_scale=case["image_guidance"])
        _, mask = self.picture(case["picture"], *case["size"])
        return dict(image=torch.zeros_like(extra[:, 1:]), mask_image=mask, strength=1.0,
                    masked_image_latents=extra[:, 1:])

    def rows(self, case, prompt, negative):
        """Returns prompt and negative in the order in which the UNet receives them."""
        if not self.guided(case):
            return [prompt]
        return [prompt, negative, negative] if "image_guidance" in case else [negative, prompt]

    def handed(self, case, dtype=torch.float32, stir=0.0):
        """Returns the latents that the base model passes to the refiner."""
        case = {k: v for k, v in case.items() if k != "switch"} | dict(switched=case["switch"])
        return self.base.run(case, dtype=dtype, stir=stir, denoising_end=case["switched"])

    def decode(self, latents):
        """Decodes final latents into an image, clamped to [-1, 1]."""
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
