"""Makes the golden values of `families/`: small models of each family of Stable Diffusion.

    families.py [--shape NAME …]                        the golden values
    families.py --write DIR [--shape NAME …] [--dtype T]  the small models as diffusers folders
    families.py --full DIR --tokenizer DIR [--dtype T]    a random-weight SDXL base, full size

`README.md` describes the files, and `family_shapes.py` describes the models. The script asserts that
a single mistake in a text encoder, in an input of the UNet or in its configuration moves the final
latents by at least ten times the tolerance of the Rust tests. It also asserts that rounding stays
well within the tolerance.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import diffusers
import safetensors.torch
import torch

from family_checks import LEAST, ONE_CALL, check
from family_reference import FIRST_SEED, Reference, configured, override, unet_inputs
from family_shapes import AUTOENCODERS, FULL_XL, SHAPES
from make import (
    HERE,
    filled,
    hooked,
    recipes_of,
    relative,
    residual,
    settle,
    tensor_of,
    write_cases,
    write_model,
    zero,
)


def main():
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*SHAPES, *AUTOENCODERS]
    arguments.add_argument("--shape", nargs="+", choices=names, default=names)
    arguments.add_argument("--write", type=Path, metavar="DIR", help="write the small models as diffusers folders")
    arguments.add_argument("--full", type=Path, metavar="DIR", help="write a full-size SDXL")
    arguments.add_argument("--tokenizer", type=Path, metavar="DIR", help="CLIP's tokenizer, for --full")
    arguments.add_argument("--dtype", choices=["float32", "float16"], default="float16")
    arguments = arguments.parse_args()
    settle()
    dtype = getattr(torch, arguments.dtype)
    if arguments.full:
        assert arguments.tokenizer, "--full needs --tokenizer"
        return write_full(arguments.full, arguments.tokenizer, dtype)
    if arguments.write:
        for name in arguments.shape:
            source = HERE / "families" / name
            write(source, arguments.write / name, HERE / "tokenizer", dtype)
        return
    figures = {}
    for name in arguments.shape:
        figures[name] = golden(name) if name in SHAPES else golden_autoencoder(name)
        size = sum(file.stat().st_size for file in (HERE / "families" / name).iterdir())
        print(f"{name}: {size} bytes", flush=True)
    print_tables(figures)


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
    return check(reference, record)


def print_tables(figures):
    """Prints the tables of `README.md`: the least effect of each mistake, and figures by shape."""
    least = {}
    for shape, (wrong, *_) in figures.items():
        for what, far in wrong.items():
            least[what] = min(least.get(what, (far, shape)), (far, shape))
    print("| mistake | least effect | shape |\n|---|---|---|")
    for what, (far, shape) in sorted(least.items()):
        print(f"| {what} | {far:.2g} | `{shape}` |")
    print("\n| shape | mistakes | least branch | rounding, runs | rounding, calls |")
    print("|---|---|---|---|---|")
    for shape, (_, made, branches, runs, calls) in figures.items():
        branch, runs = f"{min(branches.values()):.2g}", "" if runs is None else f"{runs:.1g}"
        print(f"| `{shape}` | {made} | {branch} | {runs} | {calls:.1g} |")


class Record:
    """The tensors and the cases of a shape."""

    def __init__(self, reference):
        self.reference = reference
        self.tensors, self.texts, self.calls = {}, [], []

    def text(self, prompt, prompt_2, windows, clip_skip=None):
        """Encodes a pair of prompts, unless it is recorded already. Returns the name of the
        record."""
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
        # The other runs differ only in the inputs, which their first call shows.
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
        """Records a call of the UNet. `contexts` names a text for each row, None for zeros."""
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
        """Records a call with an odd and tiny size, a fractional timestep and other size ids."""
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


def golden_autoencoder(name):
    """Records two decoded and two encoded images of an autoencoder."""
    shape, folder = AUTOENCODERS[name], HERE / "families" / name
    folder.mkdir(parents=True, exist_ok=True)
    models = {"vae": getattr(diffusers, shape["vae_class"])(**shape["vae"])}
    seed = 2 * FIRST_SEED + 10_000 * list(AUTOENCODERS).index(name)
    parts = recipes_of(models, seed, shape["knobs"])
    override(parts["vae"], shape)
    vae = filled(models, parts)["vae"].eval()
    write_model(folder, models, parts)

    def encoded(image):
        output = vae.encode(image)
        if hasattr(output, "latents"):
            return {"latents": output.latents}
        return {"mean": output.latent_dist.mean, "logvar": output.latent_dist.logvar}

    def results(tensors):
        """Returns the outputs of the autoencoder for the recorded inputs."""
        found = {}
        for key, tensor in tensors.items():
            tensor = tensor.to(vae.dtype)
            name, _, kind = key.rpartition(".")
            if key.startswith("vae-decode") and kind == "latents":
                found[f"{name}.image"] = vae.decode(tensor).sample
            if key.startswith("vae-encode") and kind == "image":
                found |= {f"{name}.{k}": v for k, v in encoded(tensor).items()}
        return found

    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    cases, tensors = dict(vae_decode=[], vae_encode=[]), {}
    for index, (width, height) in enumerate([(4, 3), (3, 5)]):
        generator = torch.Generator().manual_seed(100 + index)
        channels = vae.config.latent_channels
        latents = torch.randn((1, channels, height, width), generator=generator)
        tensors[f"vae-decode.{index}.latents"] = shape["deviation"] * latents
        image = torch.rand((1, 3, height * factor, width * factor), generator=generator)
        tensors[f"vae-encode.{index}.image"] = 2 * image - 1
        cases["vae_decode"].append(dict(name=f"vae-decode.{index}"))
        cases["vae_encode"].append(dict(name=f"vae-encode.{index}"))
    right = results(tensors)
    write_cases(folder, tensors | right, cases)

    def far():
        """Returns the largest change of any result."""
        other = results(tensors)
        return max(relative(right[k], other[k]) for k in right)

    wrong, branches = {}, {}
    for branch, module, hook in residual(vae):
        with hooked(module, hook):
            branches[branch] = far()
    for branch, module in vae.named_modules():
        if type(module).__name__ == "AutoencoderTinyBlock":
            with hooked(module.conv, zero):
                branches[branch] = far()
    if shape["vae_class"] == "AutoencoderTiny":
        latents, image = tensors["vae-decode.0.latents"], tensors["vae-encode.0.image"]
        layers, decoded = vae.decoder.layers, right["vae-decode.0.image"]
        wrong["no tanh"] = relative(decoded, layers(latents) * 2 - 1)
        wrong["a tanh to 1"] = relative(decoded, layers(torch.tanh(latents)) * 2 - 1)
        wrong["an image from 0 to 1"] = relative(decoded, (decoded + 1) / 2)
        wrong["an image encoded as it is"] = relative(
            right["vae-encode.0.latents"], vae.encoder.layers(image))
    else:
        latents = tensors["vae-decode.0.latents"]
        wrong["no post_quant_conv"] = relative(
            right["vae-decode.0.image"], vae.decoder(latents))
        wrong["no quant_conv"] = relative(
            right["vae-encode.0.mean"],
            vae.encoder(tensors["vae-encode.0.image"])[:, : vae.config.latent_channels])
        # Without a mask, the condition encoder is not used.
        for parameter in vae.decoder.condition_encoder.parameters():
            parameter.zero_()
        assert far() == 0
        filled(models, parts)
    vae.double()
    rounding = far()
    vae.float()
    assert min((wrong | branches).values()) >= LEAST
    assert rounding <= ONE_CALL, rounding
    images = [v for k, v in right.items() if k.endswith(".image")]
    assert max((image.abs() > 1).float().mean() for image in images) <= 0.3
    assert min(image.std() for image in images) >= 0.1
    return wrong, len(wrong), branches, None, rounding


# ---------------------------------------------------------------- folders


def write(source, folder, tokenizer, dtype):
    """Writes the model whose configurations and recipes are in `source` as a diffusers folder."""
    for part, recipes in json.loads((source / "weights.json").read_text()).items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        shutil.copy(source / f"{part}.json", folder / part / "config.json")
        file = "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"
        tensors = {recipe["name"]: tensor_of(recipe).to(dtype) for recipe in recipes}
        safetensors.torch.save_file(tensors, folder / part / f"{file}.safetensors")
        count = sum(tensor.numel() for tensor in tensors.values())
        print(f"{folder / part}: {count} weights", flush=True)
    for suffix in ("", "_2"):
        config = source / f"tokenizer_config{suffix}.json"
        if config.exists():
            target = folder / f"tokenizer{suffix}"
            target.mkdir(exist_ok=True)
            shutil.copy(config, target / "tokenizer_config.json")
            for file in ("vocab.json", "merges.txt"):
                shutil.copy(tokenizer / file, target)
    if (source / "scheduler.json").exists():
        (folder / "scheduler").mkdir(exist_ok=True)
        shutil.copy(source / "scheduler.json", folder / "scheduler" / "scheduler_config.json")
        shutil.copy(source / "model_index.json", folder)


def write_full(folder, tokenizer, dtype):
    """Writes SDXL base in its published size, with random weights."""
    models = configured(FULL_XL, "meta")
    parts = recipes_of(models, 1, FULL_XL["knobs"])
    like = HERE / "families" / "sdxl-base"
    with tempfile.TemporaryDirectory() as source:
        source = Path(source)
        write_model(source, models, parts)
        for file in ("model_index.json", "tokenizer_config.json", "tokenizer_config_2.json"):
            shutil.copy(like / file, source)
        write(source, folder, tokenizer, dtype)


if __name__ == "__main__":
    main()
