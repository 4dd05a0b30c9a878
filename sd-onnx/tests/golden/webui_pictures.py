"""Makes `webui_pictures/`: runs of WebUI that start with a picture, and runs of its hires fix.

    webui_pictures.py --webui DIR --k-diffusion DIR [--check NAME …] [--without-mistakes]

DIR are the folders of AUTOMATIC1111/stable-diffusion-webui (v1.10.1) and of k-diffusion
(ab527a9). The script executes some of their files, whose SHA-256 it asserts, above the small models
`four` and `families/sdxl-base`. It needs the packages of `requirements.txt` and of
`webui-requirements.txt`. `README.md` describes the files and the rules.

The script asserts that each mistake moves the result of a run by at least 1e-3, and that rounding
moves it by less than a tenth of that. With `--check`, it writes nothing and checks only the named
cases. With `--without-mistakes`, it makes the files only, in a third of the time.
"""

import argparse
import importlib.metadata
import json
import shutil
from pathlib import Path

import numpy
import safetensors.torch
import torch

import pictures
from make import HERE, relative, settle
from webui_cases import CASES
from webui_mistakes import mistakes
from webui_reference import K_DIFFUSION, WEBUI, Model, Run, Webui, mask_of

OUT = HERE / "webui_pictures"
LEAST = 1e-3  # the least effect of a mistake on the final latents or the picture, relative L2
ROUNDING = 3e-5  # the largest effect of rounding on the final latents
# The same with bytes between two passes, and with a timestep for each sigma of a Karras ladder:
# WebUI computes it in single precision, from small differences of logarithms.
LARGE_ROUNDING = 1e-4


def main():
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--webui", type=Path, required=True, metavar="DIR")
    arguments.add_argument("--k-diffusion", type=Path, required=True, metavar="DIR")
    names = [case["name"] for case in CASES]
    assert len(set(names)) == len(names)
    arguments.add_argument("--check", nargs="+", choices=names, metavar="NAME")
    arguments.add_argument("--without-mistakes", action="store_true")
    arguments = arguments.parse_args()
    settle()
    for line in (HERE / "webui-requirements.txt").read_text().split():
        name, version = line.split("==")
        found = importlib.metadata.version(name)
        assert found == version, f"{name} is {found}, expected {version}"
    webui = Webui(arguments.webui, arguments.k_diffusion)

    models, tensors, entries, runs = {}, {}, [], {}
    least, failed, most = {}, [], 0.0
    for case in CASES:
        name = case["name"]
        if arguments.check and name not in arguments.check:
            continue
        if case["model"] not in models:
            models[case["model"]] = Model(case["model"])
        model = models[case["model"]]
        run = runs[name] = Run(webui, model, case)
        rules(run)
        with model.doubled(webui):
            moved = relative(run.latents, Run(webui, model, case, replay=run).latents)
        entries.append(record(run, tensors) | dict(rounding=float(f"{moved:.1g}")))
        wrong = {} if arguments.without_mistakes else mistakes(run)
        print(name, f"rounding {moved:.1g}", {k: float(f"{v:.2g}") for k, v in wrong.items()},
              flush=True)
        most = max(most, moved)
        in_bytes = case["kind"] == "Txt2Img" and len(run.resized) > 0
        large = in_bytes or any(made.name.startswith("DPM++") for made in run.passes)
        if moved > (LARGE_ROUNDING if large else ROUNDING):
            failed.append((name, "rounding", moved))
        for what, far in wrong.items():
            least[what] = min(least.get(what, (far, name)), (far, name))
            if far < LEAST:
                failed.append((name, what, far))
    print("| mistake | least effect | case |\n|---|---|---|")
    for what, (far, name) in sorted(least.items()):
        print(f"| {what} | {far:.2g} | `{name}` |")
    print(f"rounding: {most:.1g}")
    assert not failed, failed
    if arguments.check:
        return
    relations(runs)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    write(tensors, entries)


# ---------------------------------------------------------------- records


def record(run, tensors):
    """Stores the tensors of a run and returns its entry in `cases.json`."""
    case, name, p = run.case, run.case["name"], run.p
    found = {k: v for k, v in case.items() if k not in ("keep", "checked")}
    if case["picture"]:
        key = f"picture.{case['picture']}"
        tensors[key] = torch.from_numpy(pictures.picture(case["picture"]))
        found["picture"] = key
    if case["mask"]:
        key = f"mask.{case['mask']}.{case['picture']}"
        tensors[key] = torch.from_numpy(mask_of(case))
        found["mask"] = key
    found["passes"] = [describe(made, f"{name}.{i}", tensors) for i, made in enumerate(used(run))]
    tensors[f"{name}.latents"] = run.latents
    if case["keep"]:
        tensors[f"{name}.image"] = torch.from_numpy(numpy.stack(run.images))
    if case["kind"] == "Img2Img":
        record_picture(run, tensors, found)
    elif len(run.resized) > 0:
        tensors[f"{name}.resized"] = torch.from_numpy(numpy.stack([b for _, b in run.resized]))
        tensors[f"{name}.decoded"] = torch.from_numpy(numpy.stack([a for a, _ in run.resized]))
    else:
        found["upscaled_to"] = [p.hr_upscale_to_x, p.hr_upscale_to_y]
        found["truncate"] = [p.truncate_x, p.truncate_y]
    found["infotext"] = run.result.infotexts[0]
    return found


def used(run):
    return [made for made in run.passes if made.start is not None]


def describe(made, name, tensors):
    """Stores the tensors of a pass of a sampler."""
    tensors |= {f"{name}.noise": made.noise, f"{name}.start": made.start,
                f"{name}.latents": made.latents}
    if made.picture is not None:
        tensors[f"{name}.picture"] = made.picture
    if made.tree:  # others continue the generator of the noise
        for index, values in enumerate(made.draws):
            tensors[f"{name}.draw.{index}"] = values
    return dict(sampler=made.name, levels=made.levels, calls=made.calls, eta=made.eta,
                draws=len(made.draws), tree=made.tree)


def record_picture(run, tensors, found):
    """Stores what WebUI makes of a picture and of a mask."""
    case, name, p = run.case, run.case["name"], run.p
    pixels, latents = run.encoded[0]
    found["encoded"] = [pixels.shape[3], pixels.shape[2]]
    bytes_of = (pixels[0].permute(1, 2, 0).double() * 255).round().to(torch.uint8)
    assert torch.equal(bytes_of.float() / 255, pixels[0].permute(1, 2, 0))
    if not torch.equal(bytes_of, tensors[found["picture"]]):
        tensors[f"{name}.encoded"] = bytes_of
    tensors[f"{name}.encoded_latents"] = latents[:1]
    if p.mask is None:
        return
    assert all(torch.equal(p.nmask[0], row) for row in p.nmask)
    tensors[f"{name}.latent_mask"] = p.nmask[0]
    if p.mask_for_overlay is not None:
        grey = numpy.array(p.mask_for_overlay.convert("L"))
        tensors[f"{name}.overlay_mask"] = torch.from_numpy(grey)
    found["paste_to"] = p.paste_to
    if case["keep"]:
        tensors[f"{name}.before_overlay"] = torch.from_numpy(numpy.stack(run.before))
        overlays = [numpy.array(overlay) for overlay in p.overlay_images]
        assert all((overlay == overlays[0]).all() for overlay in overlays)
        tensors[f"{name}.overlay"] = torch.from_numpy(overlays[0])


def write(tensors, entries):
    tensors = {k: v.contiguous() for k, v in tensors.items()}
    assert all(torch.isfinite(v).all() for v in tensors.values())
    assert not any(v.dtype == torch.float64 for v in tensors.values())
    file = OUT / "webui_pictures.safetensors"
    safetensors.torch.save_file(tensors, file)
    file.chmod(0o644)
    lists = dict(references=[WEBUI, K_DIFFUSION], cases=entries)
    text = ",\n".join(
        f'"{key}": [\n' + ",\n".join(json.dumps(entry) for entry in entries) + "\n]"
        for key, entries in lists.items())
    (OUT / "cases.json").write_text("{" + text + "}\n")
    print({file.name: file.stat().st_size for file in OUT.iterdir()})


# ---------------------------------------------------------------- rules


def rules(run):
    """Asserts some of the rules in the README on the values of a run."""
    case, fields, opts = run.case, run.case["fields"], run.webui.defaults | run.case["options"]
    for index, made in enumerate(used(run)):
        steps = fields["steps"]
        k = made.name != "DDIM"
        if made.picture is None:
            assert len(made.levels) == steps + k
            sigma = made.levels[0] if k else 1.0
            assert relative(made.start, made.noise * sigma) < 1e-6
            continue
        if case["kind"] == "Txt2Img":
            steps = fields.get("hr_second_pass_steps") or steps
        strength = min(fields["denoising_strength"], 0.999)
        if case["kind"] == "Txt2Img" or opts["img2img_fix_steps"]:
            whole, last = int(steps / strength), steps - 1
        else:
            whole, last = steps, int(strength * steps)
        assert len(made.levels) == (last + 2 if k else last)
        if k:
            start = made.picture + made.noise * made.levels[0]
            start = start + made.noise * opts["img2img_extra_noise"]
        else:
            times = [min(t + 1, 999) for t in range(0, 1000, 1000 // whole)]
            assert made.levels == times[:last]
            alpha = run.model.alphas_cumprod[times[last]]
            start = made.picture * alpha.sqrt() + made.noise * (1 - alpha).sqrt()
            start = start + made.noise * opts["img2img_extra_noise"] * alpha.sqrt()
        assert relative(made.start, start) < 1e-6
    plain = not fields.get("subseed_strength") and fields.get("seed_resize_from_w", 0) <= 0
    if plain and fields.get("batch_size", 1) == 1:
        for made in used(run):
            generator = torch.Generator().manual_seed(fields["seed"])
            noise = torch.randn(made.noise.shape, generator=generator)
            if case["kind"] == "Img2Img":
                noise = noise * fields.get("initial_noise_multiplier", 1.0)
            assert torch.equal(made.noise, noise)
            if opts["eta_noise_seed_delta"]:
                generator.manual_seed(fields["seed"] + opts["eta_noise_seed_delta"])
            for values in made.draws if not made.tree else []:
                assert torch.equal(values, torch.randn(values.shape, generator=generator))
    if case["mask"] == "nothing":  # the original remains
        if run.p.mask is None:  # with "only masked", WebUI falls back to img2img
            assert run.images[0].shape == (fields["height"], fields["width"], 3)
        else:
            assert (run.images[0] == pictures.picture(case["picture"])).all()
            assert torch.equal(run.latents, run.encoded[0][1])
    if case["kind"] == "Img2Img":
        for made in used(run):
            assert torch.equal(made.picture, run.p.init_latent)
    if run.p.__dict__.get("mask") is not None and case["mask"] == "rectangle":
        rounded = torch.equal(run.p.nmask, run.p.nmask.round())
        assert rounded or not fields.get("mask_round", True)


def relations(runs):
    """Asserts what is said in the README about pairs of runs."""
    for scale in ("1.5", "2"):  # nothing is averaged when latents become larger
        plain, other = (runs[f"hires.{k}-{scale}"].latents for k in ("bilinear", "antialiased"))
        assert relative(plain, other) < 1e-6
    for name in ("hires.two-pictures", "hires.two-pictures-sde", "hires.lanczos-two-pictures",
                 "img2img.two-pictures", "hires.two-variations", "inpaint.two-pictures"):
        run = runs[name]
        field = "subseed" if run.case["fields"].get("subseed_strength") else "seed"
        for row in (0, 1):
            fields = dict(run.case["fields"], batch_size=1)
            fields[field] += row
            alone = Run(run.webui, run.model, run.case | dict(fields=fields))
            most = LARGE_ROUNDING if "lanczos" in name else ROUNDING
            assert relative(alone.latents, run.latents[row : row + 1]) < most, (name, row)
    for name in ("everything", "everything-ddim"):
        run = runs[f"inpaint.{name}"]
        alone = Run(run.webui, run.model, run.case | dict(mask=None))
        assert relative(alone.latents, run.latents) < 1e-6
        assert (alone.images[0] == run.images[0]).all()


if __name__ == "__main__":
    main()
