"""Makes `control/`: ControlNets, T2I-Adapters and IP-Adapters of small models.

    pip install -r requirements.txt pillow==13.0.0
    python control.py [--folder NAME …] [--check NAME …]

The models that they control come from `make.py` and `families.py`, and the image encoder from
`vision.py`. `control_shapes.py` has the networks and the cases, and `control_reference.py` runs
diffusers' pipelines. `README.md` describes the files.

The script asserts that each network moves the final latents visibly, that each mistake of
`control_checks.py` moves them by at least ten times the tolerance of the Rust tests, and that
rounding stays well within it. With `--check`, it writes nothing and checks only the named runs.
"""

import argparse
import json
import shutil

import PIL
import safetensors.torch
import torch
from diffusers.loaders import unet_loader_utils
from PIL import Image

import pictures
import vision
from control_checks import Checks
from control_reference import Base, Run
from control_shapes import BASES, SIZES, VISION, cases_of, hint
from make import HERE, NEGATIVE, PROMPT, relative, settle, write_model

OUT = HERE / "control"
CALL_SEED, TIMESTEP = 77, 417.25
CALL_SIZES = {"sd1": (72, 56), "sdxl": (36, 28), "ssd": (10, 14)}


def main():
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--folder", nargs="+", choices=BASES, default=list(BASES))
    arguments.add_argument("--check", nargs="+", metavar="NAME", help="names of runs")
    arguments = arguments.parse_args()
    settle()
    assert PIL.__version__ == "13.0.0", PIL.__version__
    checks = Checks()
    records = {folder: made(folder, checks, arguments.check) for folder in arguments.folder}
    checks.finish()
    if arguments.check:
        return
    for folder, record in records.items():
        shutil.rmtree(OUT / folder, ignore_errors=True)
        record.write()


def made(folder, checks, chosen):
    """Runs the cases of a folder and checks them."""
    base = Base(folder)
    record = Record(base)
    for case in cases_of(folder):
        if not chosen or case["name"] in chosen:
            run = Run(base, case)
            record.run(run)
            checks.run(run)
    if not chosen:
        record.all_calls()
        checks.calls(record)
    return record


class Record:
    """The tensors and the cases of a folder."""

    def __init__(self, base):
        self.base = base
        self.tensors, self.runs, self.calls = {}, [], []

    # ------------------------------------------------------------ runs

    def run(self, run):
        """Stores the tensors of a run and its entry in `cases.json`."""
        case, name = run.case, run.case["name"]
        width, height = case["size"]
        config = {k: v for k, v in run.pipeline.scheduler.config.items() if not k.startswith("_")}
        found = {k: v for k, v in case.items() if k not in ("folder", "changes", "size")}
        found |= dict(prompt=PROMPT, negative=NEGATIVE, width=width, height=height,
                      scheduler_config=config, timesteps=run.timesteps)
        active = run.active()
        found["controls"] = [self.picture_of(one, case) | dict(active=active[index])
                             for index, one in enumerate(case["controls"])]
        found["adapters"] = [self.picture_of(one, case) for one in case["adapters"]]
        found["images"] = [self.image_of(one) for one in case["images"]]
        self.tensors[f"run.{name}.latents"] = run.latents
        if case["picture"]:
            self.start(run, found)
        else:
            ((purpose, noise),) = run.draws
            assert purpose == "noise"
            found["noise"] = f"noise.{case['seed']}.{width}x{height}"
            self.tensors[found["noise"]] = noise
        self.runs.append(found)

    def picture_of(self, one, case):
        width, height = one["size"] or case["size"]
        picture = self.hint(one["seed"], width, height)
        return {k: v for k, v in one.items() if k not in ("seed", "size")} | dict(picture=picture)

    def hint(self, seed, width, height):
        name = f"hint.{seed}.{width}x{height}"
        self.tensors[name] = torch.from_numpy(hint(seed, width, height))
        return name

    def image_of(self, one):
        name = f"image.{one['picture']}"
        self.tensors[name] = torch.from_numpy(vision.picture(one["picture"]))
        found = one | dict(picture=name)
        if isinstance(one.get("scale"), dict):
            found["blocks"] = block_scales(self.base.unet, one["scale"])
        return found

    def start(self, run, found):
        """Stores what a run that starts from a picture has in addition."""
        case, name = run.case, f"run.{run.case['name']}"
        found["picture"] = f"picture.{case['picture']}"
        self.tensors[found["picture"]] = torch.from_numpy(pictures.picture(case["picture"]))
        if case["mask"]:
            found["mask"] = f"mask.{case['mask']}.{case['picture']}"
            self.tensors[found["mask"]] = torch.from_numpy(
                pictures.mask(case["mask"], case["picture"]))
            for control in found["controls"]:  # made from picture and mask
                self.tensors.pop(control["picture"], None)
                control["picture"] = None
        found["draws"] = [dict(purpose=p, shape=list(v.shape)) for p, v in run.draws]
        for index, (_, values) in enumerate(run.draws):
            self.tensors[f"{name}.draw.{index}"] = values

    # ------------------------------------------------------------ single calls

    def all_calls(self):
        """Records single calls of the networks."""
        folder = self.base.folder
        self.calls = [dict(name="call.controlnet", kind="controlnet", part="controlnet",
                           size=CALL_SIZES[folder], timestep=TIMESTEP, pictures=[0, 1])]
        if folder == "sdxl":
            self.calls += [
                dict(name="call.union", kind="union", part="union", size=CALL_SIZES[folder],
                     timestep=TIMESTEP, pictures=[0], types=[2], scales=[0.8]),
                dict(name="call.union-two", kind="union", part="union", size=CALL_SIZES[folder],
                     timestep=TIMESTEP, pictures=[0, 1], types=[1, 3], scales=[0.8, 0.5])]
        for part in self.base.networks:
            if part.startswith("adapter") and part != "adapter_2":
                self.calls.append(dict(name=f"call.{part}", kind="adapter", part=part,
                                       size=SIZES[folder], pictures=[0]))
        for part in self.base.recipes:
            if part.startswith("ip"):
                self.calls += [dict(name=f"call.{part}.{picture}", kind="image", part=part,
                                    picture=picture) for picture in ("square", "wide")]
        if folder != "ssd":
            self.calls.append(dict(
                name="call.all", kind="all", size=SIZES[folder], timestep=TIMESTEP, pictures=[0, 1],
                control_scale=0.7, adapter_scale=0.8,
                image_scale=0.6, image="square"))
        self.tensors |= self.results()
        for call in self.calls:
            if call["kind"] in ("controlnet", "all"):  # a union has the inputs of a ControlNet
                for key, value in inputs(self.base, call["size"]).items():
                    value = value.half() if key == "context" else value
                    self.tensors[f"{call['name']}.{key}"] = value

    def results(self):
        """Returns the outputs of all single calls by name, in the precision of the networks."""
        found = {}
        for call in self.calls:
            outputs = CALLS[call["kind"]](self.base, call)
            found |= {f"{call['name']}.{key}": value for key, value in outputs.items()}
        return found

    def mistakes(self):
        """Yields how far mistakes move the call with all control networks."""
        for call in self.calls:
            if call["kind"] == "all":
                right = self.tensors["call.all.output"]
                for key in ("control_scale", "adapter_scale", "image_scale"):
                    for what, value in (("left out", 1.0), ("zero", 0.0)):
                        wrong = whole_call(self.base, call | {key: value})["output"]
                        yield f"all at once: {key.replace('_', ' ')} {what}", relative(right, wrong)

    def entry(self, call):
        """Returns the entry of a call in `cases.json`."""
        found = dict(call)
        if "picture" in call:
            found = self.image_of(found)
        if "image" in call:
            found["image"] = self.image_of(dict(picture=call["image"]))["picture"]
        if "size" in call:
            width, height = found.pop("size")
            found |= dict(width=width, height=height)
            found["pictures"] = [self.hint(seed, width, height) for seed in call["pictures"]]
        return found

    # ------------------------------------------------------------ files

    def write(self):
        folder = OUT / self.base.folder
        folder.mkdir(parents=True)
        write_model(folder, self.base.networks, self.base.recipes)
        calls = [self.entry(call) for call in self.calls]
        tensors = {k: v.contiguous() for k, v in self.tensors.items()}
        assert all(torch.isfinite(v).all() for v in tensors.values() if v.is_floating_point())
        safetensors.torch.save_file(tensors, folder / "golden.safetensors")
        (folder / "golden.safetensors").chmod(0o644)
        lists = dict(calls=calls, runs=self.runs)
        text = ",\n".join(
            f'"{key}": [\n' + ",\n".join(json.dumps(entry) for entry in entries) + "\n]"
            for key, entries in lists.items())
        head = json.dumps(dict(base=BASES[self.base.folder], vision=f"vision/{VISION}"))[:-1]
        (folder / "cases.json").write_text(head + ",\n" + text + "}\n")
        print({file.name: file.stat().st_size for file in sorted(folder.iterdir())})


def block_scales(unet, scale):
    """Returns the scale of each transformer, as `set_ip_adapter_scale` expands it."""
    (found,) = unet_loader_utils._maybe_expand_lora_scales(unet, [scale], default_scale=0.0)
    return found


# ---------------------------------------------------------------- single calls


def inputs(base, size):
    """Draws the inputs of a call with two rows, for a picture of a size."""
    generator = torch.Generator().manual_seed(CALL_SEED)
    rows, columns = size[1] // base.factor, size[0] // base.factor
    context = base.unet.config.cross_attention_dim
    found = dict(sample=torch.randn((2, 4, rows, columns), generator=generator),
                 context=torch.randn((2, 77, context), generator=generator).half().float())
    if base.folder != "sd1":
        pooled = base.model.parts["text_encoder_2"].config.projection_dim
        found["pooled"] = torch.randn((2, pooled), generator=generator)
        found["time_ids"] = torch.tensor(
            [[640.0, 512, 8, 24, 768, 512], [1024, 896, 0, 16, 512, 640]])
    return found


def network_inputs(base, size):
    """Returns the inputs as the arguments of a UNet or a ControlNet."""
    found = {key: value.to(base.unet.dtype) for key, value in inputs(base, size).items()}
    added = None
    if "pooled" in found:
        added = dict(text_embeds=found["pooled"], time_ids=found["time_ids"])
    return dict(sample=found["sample"], encoder_hidden_states=found["context"],
                added_cond_kwargs=added, return_dict=False)


def hints(base, seeds, size):
    """Returns control pictures from 0 to 1, one for each row."""
    rows = [torch.from_numpy(hint(seed, *size)).permute(2, 0, 1) for seed in seeds]
    return (torch.stack(rows).to(torch.float32) / 255).to(base.unet.dtype)


def control_call(base, call):
    """Returns the residuals of a ControlNet. The rows have different pictures."""
    down, middle = base.networks[call["part"]](
        timestep=call["timestep"], controlnet_cond=hints(base, call["pictures"], call["size"]),
        **network_inputs(base, call["size"]))
    return {f"down.{index}": residual for index, residual in enumerate(down)} | dict(mid=middle)


def union_call(base, call):
    """Returns the residuals of a union. Both rows have the same pictures."""
    net = base.networks[call["part"]]
    types = torch.zeros((2, net.config.num_control_type), dtype=net.dtype)
    types[:, call["types"]] = 1
    down, middle = net(
        timestep=call["timestep"], control_type=types, control_type_idx=call["types"],
        controlnet_cond=[hints(base, [seed] * 2, call["size"]) for seed in call["pictures"]],
        conditioning_scale=call["scales"], **network_inputs(base, call["size"]))
    return {f"down.{index}": residual for index, residual in enumerate(down)} | dict(mid=middle)


def adapter_call(base, call):
    """Returns the features of a T2I-Adapter."""
    features = base.networks[call["part"]](hints(base, call["pictures"], call["size"]))
    return {f"feature.{index}": feature for index, feature in enumerate(features)}


def image_call(base, call):
    """Returns the image tokens of a zero picture and of a picture."""
    with base.image_adapters([dict(part=call["part"], scale=1.0)]) as pipeline:
        (embeds,) = image_embeds(pipeline, [call["picture"]])
        (tokens,) = base.unet.encoder_hid_proj([embeds])
    assert tokens.shape[:2] == (2, 1)
    return dict(tokens=tokens[:, 0])


def image_embeds(pipeline, names):
    """Returns what the image encoder makes of pictures, the negative row first."""
    images = [Image.fromarray(vision.picture(name)) for name in names]
    return pipeline.prepare_ip_adapter_image_embeds(images, None, "cpu", 1, True)


def whole_call(base, call):
    """Calls a UNet with a ControlNet, a T2I-Adapter and an IP-Adapter at once."""
    first, second = call["pictures"]
    kwargs = network_inputs(base, call["size"])
    down, middle = base.networks["controlnet"](
        timestep=call["timestep"], controlnet_cond=hints(base, [first] * 2, call["size"]),
        conditioning_scale=call["control_scale"], **kwargs)
    features = base.networks["adapter"](hints(base, [second] * 2, call["size"]))
    features = [feature * call["adapter_scale"] for feature in features]
    with base.image_adapters([dict(part="ip", scale=call["image_scale"])]) as pipeline:
        added = dict(kwargs["added_cond_kwargs"] or {})
        added["image_embeds"] = image_embeds(pipeline, [call["image"]])
        (output,) = base.unet(
            timestep=call["timestep"], down_block_additional_residuals=down,
            mid_block_additional_residual=middle, down_intrablock_additional_residuals=features,
            **kwargs | dict(added_cond_kwargs=added))
    return dict(output=output)


CALLS = {"controlnet": control_call, "union": union_call, "adapter": adapter_call,
         "image": image_call, "all": whole_call}


if __name__ == "__main__":
    main()
