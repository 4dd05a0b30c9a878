"""Makes `differential/`: runs of the two pipelines of differential diffusion (arXiv 2306.00950).

    differential.py --authors FILE --community FILE

The first file is `SD2/diff_pipe.py` of exx8/differential-diffusion (d78f3f3), the second is
`examples/community/pipeline_stable_diffusion_xl_differential_img2img.py` of huggingface/diffusers.
The script asserts their SHA-256. It needs the packages of `requirements.txt`. `README.md` describes
the files and the rules.
"""

import argparse
import hashlib
import json
import shutil
import sys
import types
from pathlib import Path

import diffusers.utils
import safetensors.torch
import torch
import transformers

import pictures
from make import HERE, NEGATIVE, PROMPT, relative, settle
from pictures import ANCESTRAL, DDIM, EULER, Draws, Model

OUT = HERE / "differential"
LEAST, ROUNDING = 1e-3, 3e-5  # as in `pictures.py`
DIGESTS = {
    "authors": "a31303ca15ebfe7f849a43f477ea0834995ad3a55504bec569373806c47f87a9",
    "community": "abd716dde988c49e0116337dd15f1d2942af30139c8700c4c3b1c78e1f984528",
}
CLASSES = {"authors": "StableDiffusionDiffImg2ImgPipeline",
           "community": "StableDiffusionXLDifferentialImg2ImgPipeline"}
MODELS = {"authors": "four", "community": "families/sdxl-base"}
CASES = [dict(name=name, source=source, scheduler=scheduler, picture=picture, strength=strength)
         for name, source, scheduler, picture, strength in [
    ("sd-euler", "authors", EULER, "square", 1.0),
    ("sd-euler-0.6", "authors", EULER, "wide", 0.6),
    ("sd-ancestral", "authors", ANCESTRAL, "square", 1.0),
    ("sd-ddim", "authors", DDIM, "square", 1.0),
    ("xl-euler", "community", EULER, "small", 1.0),
    ("xl-euler-0.6", "community", EULER, "small", 0.6),
    ("xl-ancestral", "community", ANCESTRAL, "tall", 1.0),
]]
STEPS = 10
for case in CASES:
    case["residue"] = 2 if case["name"] == "sd-euler-0.6" else 1


class Resize:
    """torchvision's `Resize` of a tensor without antialiasing."""

    def __init__(self, size, antialias):
        assert antialias is None
        self.size = size

    def __call__(self, values):
        return torch.nn.functional.interpolate(
            values[None], size=self.size, mode="bilinear", align_corners=False)[0]


def prepare():
    """Sets names that the two files import and that newer packages have elsewhere or not at all."""
    transforms = types.ModuleType("torchvision.transforms")
    transforms.Resize = Resize
    vision = types.ModuleType("torchvision")
    vision.transforms, vision.__spec__ = transforms, None
    sys.modules |= {"torchvision": vision, "torchvision.transforms": transforms}
    sys.modules["transformers"].CLIPFeatureExtractor = transformers.CLIPImageProcessor
    diffusers.utils.randn_tensor = diffusers.utils.torch_utils.randn_tensor


class Source:
    """The text of a pipeline's file."""

    def __init__(self, kind, file):
        self.kind, self.text = kind, file.read_text()
        digest = hashlib.sha256(self.text.encode()).hexdigest()
        assert digest == DIGESTS[kind], f"{file} has the SHA-256 {digest}"

    def built(self, edits):
        """Returns the pipeline's class, with some texts replaced."""
        text = self.text
        for old, new in edits:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        module = types.ModuleType(f"differential_{self.kind}")
        sys.modules[module.__name__] = module
        exec(compile(text, module.__name__, "exec"), module.__dict__)
        return getattr(module, CLASSES[self.kind])


def map_of(case):
    """Returns a map as bytes: 0 is new, 255 is kept.

    No latent may get a value at a threshold, where rounding decides."""
    grey = 255 - torch.from_numpy(pictures.mask("soft", case["picture"])).to(torch.int32)
    between = (grey > 0) & (grey < 253)
    return torch.where(between, grey // 3 * 3 + case["residue"], grey).to(torch.uint8)


def tensor_of(case):
    """Returns the picture from -1 to 1, and the map from 0 to 1."""
    pixels = torch.from_numpy(pictures.picture(case["picture"])).permute(2, 0, 1)[None]
    return pixels.float() / 255 * 2 - 1, map_of(case)[None].float() / 255


class Run:
    def __init__(self, source, model, case, edits=(), seed=42, change=None, dtype=torch.float32):
        kind = getattr(diffusers, case["scheduler"][0])
        scheduler = kind.from_config(model.scheduler.config, **case["scheduler"][1])
        parts = {k: v for k, v in model.parts.items() if k != "feature_extractor"}
        if source.kind == "authors":
            parts |= dict(safety_checker=None, feature_extractor=None,
                          requires_safety_checker=False)
        else:
            parts |= dict(add_watermarker=False) | model.options
        pipeline = source.built(edits)(scheduler=scheduler, **parts)
        pipeline.set_progress_bar_config(disable=True)
        self.timesteps, self.starts, self.steps, self.noised = [], [], [], None
        image, grey = tensor_of(case)
        image, grey = image.to(dtype), change(grey) if change else grey
        self.watch(pipeline)
        if source.kind == "community":
            options = dict(original_image=image, output_type="latent",
                           callback_on_step_end=self.step_end)
        else:
            options = dict(output_type="pil", callback=self.step)
        with Draws() as draws:
            pipeline(prompt=PROMPT, negative_prompt=NEGATIVE, image=image, map=grey,
                     strength=case["strength"], num_inference_steps=STEPS,
                     guidance_scale=5.0 if model.is_xl else 2.0,
                     generator=torch.Generator().manual_seed(seed), **options)
        self.pipeline, self.draws, self.latents = pipeline, draws.found, self.steps[-1]

    def watch(self, pipeline):
        scale, add = pipeline.scheduler.scale_model_input, pipeline.scheduler.add_noise

        def scale_model_input(sample, timestep):
            self.timesteps.append(float(timestep))
            self.starts.append(sample[:1].clone())
            return scale(sample, timestep)

        def add_noise(latents, noise, timesteps):
            found = add(latents, noise, timesteps)
            self.image_latents, self.noise, self.noised = latents.clone(), noise.clone(), found
            return found

        pipeline.scheduler.scale_model_input = scale_model_input
        pipeline.scheduler.add_noise = add_noise

    def step(self, index, timestep, latents):
        self.steps.append(latents.clone())

    def step_end(self, pipeline, index, timestep, tensors):
        self.step(index, timestep, tensors["latents"])
        return {}


def mistakes(source, model, case, run):
    """Returns how far each mistake moves the final latents."""
    mask = "masks = map > thresholds" if source.kind == "authors" else (
        "masks = map > (thresholds + (denoising_start or 0))")
    blend = "latents = original_with_noise[i] * mask + latents * (1 - mask)"
    found, part = {}, case["strength"] < 1

    def far(what, *edits, **options):
        found[what] = relative(run.latents, Run(source, model, case, edits, **options).latents)

    far("another seed", seed=5)
    far("the map the other way round", change=lambda grey: 1 - grey)
    far("one threshold for all steps", change=lambda grey: (grey > 0.5).float())
    far("a threshold one step later", (mask, f"{mask.replace('map >', 'map > 1 / 10 +')}"))
    far("mixed in proportion to the map", (mask, "masks = map.repeat(len(timesteps), 1, 1)"))
    far("the noise of the step before", (blend, blend.replace("[i]", "[max(i - 1, 0)]")))
    if source.kind == "community":
        far("latents drawn once", (
            "original_with_noise = self.prepare_latents(",
            "generator.manual_seed(42)\n        original_with_noise = self.prepare_latents("))
        if part:
            far("thresholds of the steps that run", (
                "thresholds = torch.arange(total_time_steps, dtype=map.dtype) / total_time_steps",
                "thresholds = torch.arange(len(timesteps), dtype=map.dtype) / len(timesteps)"))
    elif part:
        far("thresholds of all steps", (
            "thresholds = torch.arange(len(timesteps), dtype=map.dtype) / len(timesteps)",
            "thresholds = torch.arange(len(timesteps), dtype=map.dtype) / 10"))
    return found


def record(run, case, model, tensors):
    name = case["name"]
    image, grey = tensor_of(case)
    tensors[f"picture.{case['picture']}"] = torch.from_numpy(pictures.picture(case["picture"]))
    key = f"map.{case['picture']}.{case['residue']}"
    tensors[key] = map_of(case)
    small = Resize(run.latents.shape[2:], None)(grey)
    purposes = [purpose for purpose, _ in run.draws]
    purposes[0] = "posterior"
    if case["source"] == "community":
        assert purposes[:4] == ["posterior", "noise", "posterior", "noise"]
    else:
        assert purposes[:2] == ["posterior", "noise"]
    for index, (_, values) in enumerate(run.draws):
        tensors[f"{name}.draw.{index}"] = values
    tensors |= {f"{name}.map": small[0], f"{name}.image_latents": run.image_latents,
                f"{name}.initial": run.starts[0], f"{name}.second": run.starts[1],
                f"{name}.latents": run.latents}
    # The rule.
    count = STEPS if case["source"] == "community" else len(run.timesteps)
    for index in range(1, len(run.timesteps)):
        assert (small - index / count).abs().min() > 4e-4, (name, index)
        kept = (small > index / count).to(torch.float32)
        blended = run.noised[index] * kept + run.steps[index - 1] * (1 - kept)
        assert relative(run.starts[index], blended) < 1e-6
    assert torch.equal(run.starts[0], run.noised[:1])
    config = {k: v for k, v in run.pipeline.scheduler.config.items() if not k.startswith("_")}
    return dict(
        name=name, pipeline=CLASSES[case["source"]], model=MODELS[case["source"]],
        picture=f"picture.{case['picture']}", map=key,
        strength=case["strength"], steps=STEPS, guidance=5.0 if model.is_xl else 2.0, seed=42,
        prompt=PROMPT, negative=NEGATIVE, scheduler=case["scheduler"][0], scheduler_config=config,
        timesteps=run.timesteps, thresholds=[i / count for i in range(len(run.timesteps))],
        draws=[dict(purpose=p, shape=list(v.shape)) for p, (_, v) in zip(purposes, run.draws)])


def main():
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--authors", type=Path, required=True, metavar="FILE")
    arguments.add_argument("--community", type=Path, required=True, metavar="FILE")
    arguments = arguments.parse_args()
    settle()
    prepare()
    sources = {kind: Source(kind, getattr(arguments, kind)) for kind in DIGESTS}
    models = {kind: Model(name) for kind, name in MODELS.items()}
    tensors, entries, least, most, failed = {}, [], {}, 0.0, []
    for case in CASES:
        source, model = sources[case["source"]], models[case["source"]]
        run = Run(source, model, case)
        entries.append(record(run, case, model, tensors))
        with model.doubled():
            moved = relative(run.latents, Run(source, model, case, dtype=torch.float64).latents)
        wrong = mistakes(source, model, case, run)
        print(case["name"], [p for p, _ in run.draws][:5], f"rounding {moved:.1g}",
              {k: float(f"{v:.2g}") for k, v in wrong.items()}, flush=True)
        most = max(most, moved)
        for what, far in wrong.items():
            least[what] = min(least.get(what, (far, case["name"])), (far, case["name"]))
            failed += [(case["name"], what, far)] if far < LEAST else []
    print("| mistake | least effect | case |\n|---|---|---|")
    for what, (far, name) in sorted(least.items()):
        print(f"| {what} | {far:.2g} | `{name}` |")
    print(f"rounding: {most:.1g}")
    assert not failed and most < ROUNDING, failed
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    tensors = {k: v.contiguous() for k, v in tensors.items()}
    assert all(torch.isfinite(v).all() for v in tensors.values())
    safetensors.torch.save_file(tensors, OUT / "differential.safetensors")
    (OUT / "differential.safetensors").chmod(0o644)
    rows = ",\n".join(json.dumps(entry) for entry in entries)
    (OUT / "cases.json").write_text("[\n" + rows + "\n]\n")


if __name__ == "__main__":
    main()
