"""Makes the golden values of the five shapes, or writes their models as diffusers folders.

    make.py [--shape NAME]                           the golden values, in this folder
    make.py --write DIR [--shape NAME] [--dtype T]   the small models as diffusers folders, DIR/NAME
    make.py --full DIR --tokenizer DIR [--dtype T]   a random-weight Stable Diffusion 1.5, full size

The script asserts that mistakes would change the values. README.md describes the files.
"""

import argparse
import contextlib
import json
import logging
import math
import re
import shutil
import warnings
from pathlib import Path

import diffusers
import numpy
import safetensors.torch
import tokenizers
import torch
import transformers
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from shapes import BOS, EOS, FULL, SHAPES, VOCABULARY, scale_and_offset

HERE = Path(__file__).parent
PROMPT, NEGATIVE, OTHER = "a cute fox girl, watercolour", "blurry, low quality", "an old stone bridge in the rain"
STEPS, GUIDANCE, SEED, LARGE_SEED = 20, 7.5, 42, 2**32 + 7
TOLERANCE = 1e-4  # relative L2, the limit of the Rust tests

SAMPLERS = {
    "euler": EulerDiscreteScheduler,
    "euler-ancestral": EulerAncestralDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
    "ddim": DDIMScheduler,
    "dpmpp-2m": DPMSolverMultistepScheduler,
}
DPMPP_2M = dict(algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--write", type=Path, metavar="DIR", help="write the small models as diffusers folders")
    arguments.add_argument("--full", type=Path, metavar="DIR", help="write a full-size model")
    arguments.add_argument("--shape", choices=SHAPES, help="only this shape")
    arguments.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    arguments.add_argument("--tokenizer", type=Path, metavar="DIR",
                           help="the full CLIP tokenizer: --full copies it; without --full and --write, tokenizer/ is made from it")
    arguments = arguments.parse_args()

    settle()
    names = [arguments.shape] if arguments.shape else list(SHAPES)
    dtype = getattr(torch, arguments.dtype)
    if arguments.full:
        assert arguments.tokenizer, "--full needs --tokenizer"
        write(arguments.full, build(FULL, recipes(FULL, 1)), arguments.tokenizer, dtype)
    elif arguments.write:
        for name in names:
            write(arguments.write / name, build(SHAPES[name], read_recipes(name)), HERE / "tokenizer", dtype)
    else:
        if arguments.tokenizer:
            cut_tokenizer(arguments.tokenizer)
        check_tokenizer()
        print_table({name: golden(name) for name in names})


def settle():
    """Checks the versions, makes torch deterministic and silences the libraries."""
    versions = {"diffusers": diffusers, "transformers": transformers, "torch": torch, "numpy": numpy,
                "safetensors": safetensors, "tokenizers": tokenizers}
    for line in (HERE / "requirements.txt").read_text().split():
        name, version = line.split("==")
        found = versions[name].__version__.split("+")[0]
        assert found == version, f"{name} is {found}, expected {version}"
    assert torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"), "expected AVX2 or AVX512, without which torch.randn has other last bits"
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.set_grad_enabled(False)
    warnings.filterwarnings("ignore")
    diffusers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)


# ---------------------------------------------------------------- models


def configured(shape):
    """Returns the three networks, with weights not set yet, and the scheduler."""
    class_name, scheduler = shape["scheduler"]
    return {
        "text_encoder": CLIPTextModel(CLIPTextConfig(**shape["text"], architectures=["CLIPTextModel"])),
        "unet": UNet2DConditionModel(**shape["unet"]),
        "vae": AutoencoderKL(**shape["vae"]),
        "scheduler": getattr(diffusers, class_name)(**scheduler),
    }


def recipes(shape, first_seed):
    return recipes_of(configured(shape), first_seed, shape["knobs"])


def recipes_of(models, first_seed, knobs):
    """Returns a recipe for each tensor. Seeds count up from `first_seed`, so that all are
    different."""
    parts, seed = {}, first_seed
    for part, model in models.items():
        if part == "scheduler":
            continue
        parts[part] = []
        for name, tensor in model.state_dict().items():
            if name.endswith("position_ids"):
                continue
            scale, offset = scale_and_offset(part, name, tensor.shape, knobs)
            parts[part].append(dict(name=name, shape=list(tensor.shape), seed=seed, scale=scale, offset=offset))
            seed += 1
    return parts


def read_recipes(name):
    return json.loads((HERE / name / "weights.json").read_text())


def tensor_of(recipe):
    """Returns float16(offset + scale * randn). Every operation is in float32."""
    values = torch.randn(math.prod(recipe["shape"]), generator=torch.Generator().manual_seed(recipe["seed"]))
    values = values * torch.tensor(recipe["scale"], dtype=torch.float32)
    values = values + torch.tensor(recipe["offset"], dtype=torch.float32)
    return values.to(torch.float16).to(torch.float32).reshape(recipe["shape"])


def build(shape, parts):
    return filled(configured(shape), parts)


def filled(models, parts):
    """Sets the weights of the models from their recipes, and returns the models."""
    for part, tensors in parts.items():
        missing, unexpected = models[part].load_state_dict({r["name"]: tensor_of(r) for r in tensors}, strict=False)
        assert not unexpected and all(name.endswith("position_ids") for name in missing), (missing, unexpected)
        models[part].eval()
    return models


def pipeline_of(models, tokenizer):
    # The pipeline sets `steps_offset` to 1 and `clip_sample` to false, so it gets a copy.
    copy = type(models["scheduler"]).from_config(models["scheduler"].config)
    pipeline = StableDiffusionPipeline(
        **{k: models[k] for k in ("text_encoder", "unet", "vae")}, scheduler=copy, tokenizer=tokenizer,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write(folder, models, tokenizer, dtype):
    pipeline = pipeline_of(models, CLIPTokenizer.from_pretrained(tokenizer)).to(dtype)
    pipeline.save_pretrained(folder)
    models["scheduler"].save_pretrained(folder / "scheduler")
    # Older folders have the two files and no tokenizer.json.
    shutil.rmtree(folder / "tokenizer")
    (folder / "tokenizer").mkdir()
    for file in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / file, folder / "tokenizer" / file)
    print(folder, sum(p.numel() for m in ("text_encoder", "unet", "vae") for p in models[m].parameters()), "weights")


# ---------------------------------------------------------------- tokenizer


def cut_tokenizer(full):
    """Writes 512 + 500 entries of CLIP's vocabulary: the 512 bytes and the first 500 merges."""
    vocabulary = sorted((json.loads((full / "vocab.json").read_text())).items(), key=lambda entry: entry[1])
    merges = (full / "merges.txt").read_text().split("\n")[:501]
    kept = [token for token, _ in vocabulary[:BOS]]
    assert kept[512:] == [m.replace(" ", "") for m in merges[1:]]
    kept += ["<|startoftext|>", "<|endoftext|>"]
    folder = HERE / "tokenizer"
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(kept)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(merges) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(dict(
        model_max_length=77, pad_token="<|endoftext|>", bos_token="<|startoftext|>", eos_token="<|endoftext|>",
        unk_token="<|endoftext|>", do_lower_case=True, tokenizer_class="CLIPTokenizer"), indent=1) + "\n")


def check_tokenizer():
    tokenizer = CLIPTokenizer.from_pretrained(HERE / "tokenizer")
    assert len(tokenizer) == VOCABULARY
    for text in (PROMPT, NEGATIVE, OTHER):
        ids = token_ids(tokenizer, text)[0].tolist()
        used = ids.index(EOS)
        assert ids[0] == BOS and len(ids) == 77 and used < 76 and set(ids[used:]) == {EOS}
        assert tokenizer.decode(ids[1:used]).replace(" ", "") == text.replace(" ", "")


def token_ids(tokenizer, text):
    return tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids


# ---------------------------------------------------------------- golden values


def golden(name):
    shape, folder = SHAPES[name], HERE / name
    folder.mkdir(exist_ok=True)
    parts = recipes(shape, 1000 * (1 + list(SHAPES).index(name)) * 10)
    models = build(shape, parts)
    write_model(folder, models, parts)

    reference = Reference(shape, models)
    tensors, cases = {}, dict(prompt=PROMPT, negative=NEGATIVE)
    text_cases(reference, tensors, cases)
    unet_cases(reference, tensors, cases)
    vae_cases(reference, tensors, cases)
    run_cases(reference, tensors, cases)
    write_cases(folder, tensors, cases)
    return check(name, reference, tensors, cases)


def write_model(folder, models, parts):
    """Writes the configurations and the recipes of a shape."""
    for part, model in models.items():
        model.config.save_pretrained(folder) if part.startswith("text_encoder") else model.save_config(folder)
        written = "scheduler_config.json" if part == "scheduler" else "config.json"
        (folder / written).rename(folder / f"{part}.json")
    if "scheduler" in models:
        scheduler = json.loads((folder / "scheduler.json").read_text())
        (folder / "scheduler.json").write_text(json.dumps(scheduler, indent=None if scheduler.get("trained_betas") else 2) + "\n")
    lines = [f'"{p}":[\n' + ",\n".join(json.dumps(r, separators=(",", ":")) for r in t) + "\n]" for p, t in parts.items()]
    (folder / "weights.json").write_text("{" + ",\n".join(lines) + "}\n")


def write_cases(folder, tensors, cases):
    tensors = {k: v.contiguous() for k, v in tensors.items()}
    assert all(torch.isfinite(v).all() for v in tensors.values())
    safetensors.torch.save_file(tensors, folder / "golden.safetensors")
    (folder / "cases.json").write_text(json.dumps(cases, indent=1) + "\n")
    (folder / "golden.safetensors").chmod(0o644)


class Reference:
    """diffusers' pipeline with the models of one shape."""

    def __init__(self, shape, models):
        self.shape, self.models = shape, models
        self.tokenizer = CLIPTokenizer.from_pretrained(HERE / "tokenizer")
        self.pipeline = pipeline_of(models, self.tokenizer)
        self.unet, self.vae, self.text = models["unet"], models["vae"], models["text_encoder"]
        self.factor = 2 ** (len(shape["vae"]["block_out_channels"]) - 1)
        assert self.pipeline.vae_scale_factor == self.factor

    def embed(self, prompt, clip_skip=1):
        output = self.text(token_ids(self.tokenizer, prompt), output_hidden_states=True)
        embedding = self.text.final_layer_norm(output.hidden_states[-clip_skip])
        if clip_skip == 1:
            assert torch.equal(embedding, output.last_hidden_state)
        return embedding

    def noise(self, seed, size):
        shape = (1, self.unet.config.in_channels, size[1] // self.factor, size[0] // self.factor)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def scheduler(self, sampler, **changes):
        config = self.models["scheduler"].config
        fixed = dict(clip_sample=config.get("clip_sample", False), steps_offset=config.get("steps_offset", 0),
                     set_alpha_to_one=config.get("set_alpha_to_one", True))
        assert not fixed["clip_sample"]
        fixed |= DPMPP_2M if sampler == "dpmpp-2m" else {}
        return SAMPLERS[sampler].from_config(config, **fixed | changes)

    def run(self, sampler="euler", changes=None, prompt=PROMPT, negative=NEGATIVE, clip_skip=1, guidance=GUIDANCE,
            seed=SEED, size=None, latents=None, dtype=torch.float32):
        """Returns the final latents, before the division by the scaling factor."""
        size = size or self.shape["size"]
        self.pipeline.scheduler = self.scheduler(sampler, **(changes or dict(timestep_spacing="leading")))
        # The generator is advanced past the first noise: ancestral noise follows it, as in the
        # pipeline.
        generator = torch.Generator().manual_seed(seed)
        output = self.pipeline(
            prompt_embeds=self.embed(prompt, clip_skip).to(dtype),
            negative_prompt_embeds=self.embed(negative, clip_skip).to(dtype),
            width=size[0], height=size[1], num_inference_steps=STEPS, guidance_scale=guidance, generator=generator,
            latents=latents, output_type="latent")
        return output.images

    def decode(self, latents):
        config = self.vae.config
        return self.vae.decode(latents / config.scaling_factor + (config.shift_factor or 0)).sample


def text_cases(reference, tensors, cases):
    cases["text"] = []
    for key, text in (("prompt", PROMPT), ("negative", NEGATIVE)):
        tensors[f"text.{key}.ids"] = token_ids(reference.tokenizer, text).to(torch.int32)
        for clip_skip in (1, 2, 3):
            tensors[f"text.{key}.clip-skip-{clip_skip}"] = reference.embed(text, clip_skip)
            cases["text"].append(dict(name=f"text.{key}.clip-skip-{clip_skip}", text=text, clip_skip=clip_skip))


def unet_cases(reference, tensors, cases):
    """Records calls with even, odd and tiny sizes, and with an integer and a fractional
    timestep."""
    cases["unet"] = []
    context = torch.cat([reference.embed(NEGATIVE), reference.embed(PROMPT)])
    tensors["unet.context"] = context
    last = reference.models["scheduler"].config.num_train_timesteps - 1
    for index, (width, height, timestep) in enumerate([(8, 16, float(last)), (17, 13, 0.621 * last), (5, 3, 0.0)]):
        generator = torch.Generator().manual_seed(index)
        sample = torch.randn((2, reference.unet.config.in_channels, height, width), generator=generator)
        timestep = torch.tensor(timestep)
        name = f"unet.{index}"
        tensors[f"{name}.sample"] = sample
        tensors[f"{name}.output"] = reference.unet(sample, timestep, encoder_hidden_states=context).sample
        cases["unet"].append(dict(name=name, timestep=timestep.item()))


def vae_cases(reference, tensors, cases):
    """Decodes latents of standard deviation 5, as after a run. Only the log-variance is clamped."""
    cases["vae_decode"], cases["vae_encode"] = [], []
    for index, (width, height) in enumerate([(6, 8), (7, 5)]):
        generator = torch.Generator().manual_seed(100 + index)
        latents = 5 * torch.randn((1, reference.vae.config.latent_channels, height, width), generator=generator)
        name = f"vae-decode.{index}"
        tensors[f"{name}.latents"], tensors[f"{name}.image"] = latents, reference.vae.decode(latents).sample
        cases["vae_decode"].append(dict(name=name))
        # Strided convolutions would cut a side that is not a multiple of the factor.
        size = (1, 3, height * reference.factor, width * reference.factor)
        image = torch.rand(size, generator=generator) * 2 - 1
        moments = reference.vae.encode(image).latent_dist
        name = f"vae-encode.{index}"
        tensors |= {f"{name}.image": image, f"{name}.mean": moments.mean, f"{name}.logvar": moments.logvar}
        cases["vae_encode"].append(dict(name=name))


def run_cases(reference, tensors, cases):
    cases["runs"], config = [], reference.models["scheduler"].config
    # diffusers' ancestral Euler and Heun refuse models that predict the sample.
    samplers = [s for s in SAMPLERS if config.prediction_type != "sample" or s not in ("euler-ancestral", "heun")]
    spaced = {f"{s}-{p}": (s, dict(timestep_spacing=p)) for s in samplers for p in ("leading", "linspace", "trailing")}
    karras = {f"{s}-karras": (s, dict(timestep_spacing="linspace", use_karras_sigmas=True))
              for s in samplers if s in ("euler", "heun", "dpmpp-2m")}
    ladders = spaced | karras
    odd, odd_size = reference.shape["odd"]
    plan = [(name, ladder, {}) for name, ladder in ladders.items()] + [
        ("odd-size", ladders[odd], dict(size=odd_size)),
        ("clip-skip-2", ladders["euler-leading"], dict(clip_skip=2)),
        ("no-guidance", ladders["euler-leading"], dict(guidance=1.0)),
        ("large-seed", ladders["dpmpp-2m-karras" if odd == "euler-leading" else "euler-leading"], dict(seed=LARGE_SEED)),
    ]
    if reference.shape.get("zero_snr"):  # diffusers' Heun and ancestral Euler do not support it
        for sampler in ("euler", "ddim", "dpmpp-2m"):
            changes = dict(timestep_spacing="trailing", rescale_betas_zero_snr=True)
            plan.append((f"{sampler}-zero-snr", (sampler, changes), {}))
    for name, (sampler, changes), options in plan:
        options = dict(clip_skip=1, guidance=GUIDANCE, seed=SEED, size=reference.shape["size"]) | options
        (width, height), seed = options["size"], options["seed"]
        noise = f"noise.{seed}.{width}x{height}"
        tensors[noise] = reference.noise(seed, options["size"])
        latents = reference.run(sampler, changes, **options)
        tensors[f"run.{name}.latents"] = latents
        tensors[f"run.{name}.image"] = reference.decode(latents).clamp(-1, 1).to(torch.float16)
        scheduler = reference.scheduler(sampler, **changes)
        options.pop("size")
        cases["runs"].append(dict(
            name=f"run.{name}", sampler=sampler, scheduler=type(scheduler).__name__,
            timestep_spacing=changes["timestep_spacing"], use_karras_sigmas=changes.get("use_karras_sigmas", False),
            rescale_betas_zero_snr=changes.get("rescale_betas_zero_snr", False),
            set_alpha_to_one=scheduler.config.get("set_alpha_to_one", True), steps_offset=scheduler.config.steps_offset,
            steps=STEPS, width=width, height=height, **options, noise=noise))


# ---------------------------------------------------------------- checks that the cases can fail


def relative(a, b):
    """Returns the relative L2 distance of `b` from `a`."""
    return (torch.linalg.vector_norm(a.double() - b.double()) / torch.linalg.vector_norm(a.double())).item()


@contextlib.contextmanager
def hooked(module, replacement):
    handle = module.register_forward_hook(replacement, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def zero(module, args, kwargs, output):
    return (torch.zeros_like(output[0]), *output[1:]) if isinstance(output, tuple) else torch.zeros_like(output)


def skip(module, args, kwargs, output):
    first = args[0] if args else kwargs["hidden_states"]
    if getattr(module, "conv_shortcut", None) is not None:
        first = module.conv_shortcut(first)
    return (first, *output[1:]) if isinstance(output, tuple) else first


def residual(model):
    """Yields each residual branch of a network, with the hook that leaves it out."""
    kinds = {"Transformer2DModel": skip, "ResnetBlock2D": skip, "CLIPAttention": zero, "CLIPMLP": zero, "FeedForward": zero}
    for name, module in model.named_modules():
        kind = type(module).__name__
        if kind == "Attention":  # in the VAE, the module itself adds the residual
            yield name, module, skip if module.residual_connection else zero
        elif kind in kinds:
            yield name, module, kinds[kind]


def check(name, reference, tensors, cases):
    """Asserts that mistakes move a shape's runs and that rounding does not. Returns the figures."""
    final = tensors["run.euler-leading.latents"]

    # A single mistake must move the final latents by at least a hundred times the tolerance.
    wrong = {
        "another prompt": relative(final, reference.run(prompt=OTHER)),
        "another negative prompt": relative(final, reference.run(negative=OTHER)),
        "clip skip 2 for 1": relative(final, tensors["run.clip-skip-2.latents"]),
        "guidance 7 for 7.5": relative(final, reference.run(guidance=7.0)),
    }
    with hooked(reference.unet.time_proj, stopped_clock):
        wrong["a constant timestep"] = relative(final, reference.run())
    left_out = {}
    for branch, module, hook in residual(reference.unet):
        with hooked(module, hook):
            left_out[branch] = relative(final, reference.run())
    for kind, pattern in {"residual block": r"resnets\.\d+", "self-attention": r".*attn1", "cross-attention": r".*attn2",
                          "feed-forward": r".*ff", "transformer": r"attentions\.\d+"}.items():
        found = [v for b, v in left_out.items() if re.fullmatch(r"(down_blocks\.\d+|mid_block|up_blocks\.\d+)\." + pattern, b)]
        wrong[f"without one {kind}"] = min(found)
    for part, model, quantity in (
        ("text model: embedding", reference.text, lambda: reference.embed(PROMPT)),
        ("VAE encoder: mean", reference.vae.encoder, lambda: reference.vae.encode(tensors["vae-encode.0.image"]).latent_dist.mean),
        ("VAE decoder: image", reference.vae.decoder, lambda: reference.decode(final)),
    ):
        whole, found = quantity(), []
        for _, module, hook in residual(model):
            with hooked(module, hook):
                found.append(relative(whole, quantity()))
        wrong[f"without one branch of the {part}"] = min(found)

    # A near miss must move them by at least five times the tolerance. (On leading and trailing
    # timesteps DDIM can equal Euler, so only linspace is compared.)
    alpha = [reference.run("ddim", dict(timestep_spacing="leading", set_alpha_to_one=a)) for a in (False, True)]
    near = {
        "DDIM for Euler, linspace": relative(tensors["run.euler-linspace.latents"], tensors["run.ddim-linspace.latents"]),
        "DDIM, set_alpha_to_one": relative(*alpha),
    }

    # The right computation with another rounding must stay well within the tolerance.
    stirred, double = {}, {}
    for case in cases["runs"]:
        if case["sampler"] == "euler-ancestral":
            continue  # its later noise depends on the generator and the precision of the first
        changes = {k: case[k] for k in ("timestep_spacing", "use_karras_sigmas", "rescale_betas_zero_snr") if case[k]}
        options = dict(guidance=case["guidance"], clip_skip=case["clip_skip"], seed=case["seed"],
                       size=(case["width"], case["height"]))
        start, end = tensors[case["noise"]], tensors[f"{case['name']}.latents"]
        if case["name"].endswith(("er-leading", "-karras", "-zero-snr")):
            stir = 1e-6 * torch.randn(start.shape, generator=torch.Generator().manual_seed(1))
            stirred[case["name"]] = relative(end, reference.run(case["sampler"], changes, latents=start * (1 + stir), **options))
        if start.numel() < 4096:  # the large run would take too long
            reference.unet.double(), reference.text.double()
            double[case["name"]] = relative(end, reference.run(
                case["sampler"], changes, latents=start.double(), dtype=torch.float64, **options))
            reference.unet.float(), reference.text.float()
    rounding = {"first noise stirred by 1e-6 (most)": max(stirred.values()),
                "networks in double precision (most)": max(double.values())}

    images = [tensors[f"{case['name']}.image"].float() for case in cases["runs"]]
    spread = [tensors[f"{case['name']}.latents"].std().item() for case in cases["runs"]]
    saturated = max((image.abs() == 1).float().mean().item() for image in images)
    clamped = (tensors["vae-encode.0.logvar"] == 20).float().mean().item()
    rest = {"latents' standard deviation (least)": min(spread), "latents' standard deviation (most)": max(spread),
            "images at the limits (most)": saturated, "log-variances clamped": clamped}
    print(name, wrong | near | rounding | rest, flush=True)
    assert min(wrong.values()) >= 100 * TOLERANCE, min(wrong, key=wrong.get)
    assert min(near.values()) >= 5 * TOLERANCE, min(near, key=near.get)
    assert max(rounding.values()) <= 0.3 * TOLERANCE, max(rounding, key=rounding.get)
    assert 0.5 <= min(spread) and max(spread) <= 25
    assert (clamped > 0) == ("moments" in reference.shape["knobs"])
    assert saturated <= 0.2 and min(image.std() for image in images) >= 0.1
    return wrong | near | rounding | rest


def stopped_clock(module, args, kwargs, output):
    constant = torch.full_like(args[0], 500.0)
    return output if torch.equal(args[0], constant) else module(constant)


def print_table(figures):
    print("| |", " | ".join(figures), "|")
    print("|---|" + "---|" * len(figures))
    for row in next(iter(figures.values())):
        print(f"| {row} |", " | ".join(f"{column[row]:.2g}" for column in figures.values()), "|")


if __name__ == "__main__":
    main()
