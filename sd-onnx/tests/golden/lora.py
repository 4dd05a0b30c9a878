"""Makes the golden values of `lora/`: adapters of every format, and the weights that they make.

    lora.py --webui DIR --comfy DIR

DIR are the folders of AUTOMATIC1111/stable-diffusion-webui (v1.10.1) and of ComfyUI (0.3.68). The
script needs a few files of each, whose SHA-256 it asserts. It also needs the packages of
`requirements.txt` and `lora-requirements.txt`. `README.md` describes the files.
"""

import argparse
import contextlib
import importlib.metadata
import json
import shutil
import tempfile
from pathlib import Path

import safetensors.torch
import torch

import lora_references as references
import make
from family_reference import Reference as FamilyReference
from lora_cases import CASES
from lora_checks import Agreement, Mistakes, distance
from lora_names import Names
from make import HERE, relative, settle

OUT = HERE / "lora"
TOLERANCE = 1e-6  # relative L2 of a changed tensor, the limit of the Rust tests
MOST_NUMBERS = 512  # of a tensor in expected.safetensors; larger ones are stored in part
KOHYA = ("kohya", "kohya_sgm", "kohya_te1", "kohya_oft")


def main():
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--webui", type=Path, required=True, metavar="DIR")
    arguments.add_argument("--comfy", type=Path, required=True, metavar="DIR")
    arguments = arguments.parse_args()
    settle()
    for line in (HERE / "lora-requirements.txt").read_text().split():
        name, version = line.split("==")
        found = importlib.metadata.version(name)
        assert found == version, f"{name} is {found}, expected {version}"
    webui, comfy = references.Webui(arguments.webui), references.Comfy(arguments.comfy)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    record = Record(webui, comfy)
    for base, cases in CASES.items():
        model = Model(base)
        for case in cases(model.models):
            record.add(model, case)
    record.write()
    record.agreement.print()
    record.mistakes.print()


class Model:
    """A small model, and diffusers' pipeline of it."""

    def __init__(self, base):
        self.base = base
        if base == "four":
            shape = make.SHAPES[base]
            models = make.build(shape, make.read_recipes(base))
            self.reference = make.Reference(shape, models)
            self.pipeline = self.reference.pipeline
        else:
            self.reference = FamilyReference(base.removeprefix("families/"))
            self.pipeline = self.reference.pipeline
        self.models = references.networks_of(self.reference.models)
        self.names = Names(self.models)
        self.tensors = references.tensors_of(self.models)

    @contextlib.contextmanager
    def changed(self, tensors):
        """Sets some tensors for a while."""
        self.set(tensors)
        try:
            yield
        finally:
            self.set({k: self.tensors[k] for k in tensors})

    def set(self, tensors):
        for name, tensor in tensors.items():
            component, name = name.split(".", 1)
            self.models[component].state_dict()[name].copy_(tensor)

    def run(self, name):
        """Returns the final latents of a run of this model."""
        if self.base == "four":
            assert name == "run.euler-leading"
            return self.reference.run()
        case = next(r for r in self.reference.runs if f"run.{r['name']}" == name)
        return self.reference.run(case)


def cast(tensors, dtype):
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}


class Record:
    """The files, the cases and the expected tensors."""

    def __init__(self, webui, comfy):
        self.webui, self.comfy = webui, comfy
        self.cases, self.tensors, self.values, self.files = [], {}, {}, {}
        self.agreement, self.mistakes = Agreement(webui, comfy), Mistakes(webui)

    def add(self, model, case):
        file = OUT / (f"{case.name}{case.suffix}" if case.reuse is None else self.files[case.reuse])
        if case.reuse is None:
            self.save(model, case, file)
        self.files[case.name] = file.name
        adapter = {k: cast(parts, case.dtype) for k, parts in case.adapter.items()}
        with tempfile.TemporaryDirectory() as folder:
            plain = self.kohya(model, case, adapter, file, Path(folder))
            values = {label: self.expected(model, case, adapter, file, plain, unet, text)
                      for label, unet, text in case.weights}
            self.agreement.add(model, case, adapter, file, plain, values)
        modules = {f"{component}.{module}" for component, module in adapter}
        for label, tensors in values.items():
            assert {k.rpartition(".")[0] for k in tensors} == modules, case.name
        own = case.values or case.name
        if case.values:
            for label, tensors in values.items():
                far = distance(tensors, self.values[own][label], model.tensors)
                assert far < TOLERANCE / 10, (case.name, label, far)
        else:
            self.values[own] = values
        described = self.describe(model, case, file, values)
        if not case.values:
            self.store(model, case, described, values)
        if described["embeddings"]:
            self.store_embeddings(case, described)
        self.mistakes.add(model, case, adapter, values)
        if case.after:
            first = self.before(case)
            turned = {label: [(file, *weights), *first] for label, *weights in case.weights}
            self.mistakes.order(model, case, turned, values)
        self.cases.append(described)
        print(case.name, flush=True)

    def save(self, model, case, file):
        if case.naming == "diffusers_metadata":
            return references.save_diffusers(
                model.pipeline, case.adapter, case.config or {}, file, case.convert)
        if case.naming == "peft_alone":
            component = next(iter(case.adapter))[0]
            parts = {module: parts for (_, module), parts in case.adapter.items()}
            network = model.models[component]
            return references.save_peft(network, parts, case.config or {}, file)
        tensors = cast(model.names.stored(case.adapter, case.naming) | case.extra, case.dtype)
        if case.suffix == ".pt":
            torch.save(tensors, file)
        else:
            safetensors.torch.save_file(tensors, file, {"format": "pt"} | (case.metadata or {}))
            references.tidy(file)

    def kohya(self, model, case, adapter, file, folder):
        """Returns a file that WebUI can read: the case's own, or one under kohya's names."""
        if case.naming == "kohya" and not model.names.is_xl or case.naming in KOHYA[1:]:
            return file
        naming = "kohya_sgm" if model.names.is_xl else "kohya"
        tensors = model.names.stored(adapter, naming) | case.extra
        safetensors.torch.save_file(tensors, folder / "x.safetensors")
        return folder / "x.safetensors"

    def expected(self, model, case, adapter, file, plain, unet, text):
        if case.reference == "webui":
            return self.webui.apply(model.models, [*self.before(case), (plain, unet, text)])
        if case.reference == "diffusers":
            return references.diffusers(model.pipeline, file, unet, text)
        if case.reference == "comfy":
            tensors = safetensors.torch.load_file(plain)
            return self.comfy.apply(model.models, tensors, unet, text)[0]
        assert unet == text
        if case.reference == "lycoris":
            return references.lycoris(model.models, adapter, unet)
        if case.reference == "peft":
            return references.peft(model.models["unet"], "unet", file, unet)
        if case.reference == "lycoris-1":
            target = references.lycoris(model.models, adapter, 1.0)
        elif case.reference == "diffusers-1":
            target = references.diffusers(model.pipeline, file, 1.0, 1.0)
        else:
            assert case.reference == "peft-1"
            target = references.peft(model.models["unet"], "unet", file, 1.0)
        return self.as_difference(model, target, unet)

    def before(self, case):
        """Lists the adapters that come before the adapter of a case."""
        return [(OUT / self.files[name], unet, text) for name, unet, text in case.after]

    def as_difference(self, model, target, weight):
        """Moves the weights towards `target` as WebUI does with a full difference."""
        adapter = {}
        for name, tensor in target.items():
            component, name = name.split(".", 1)
            name, leaf = name.rsplit(".", 1)
            assert leaf == "weight"
            difference = tensor - model.tensors[f"{component}.{name}.weight"]
            adapter[component, name] = {"diff": difference}
        with tempfile.TemporaryDirectory() as folder:
            naming = "kohya_sgm" if model.names.is_xl else "kohya"
            file = Path(folder) / "x.safetensors"
            safetensors.torch.save_file(model.names.stored(adapter, naming), file)
            return self.webui.apply(model.models, [(file, weight, weight)])

    def describe(self, model, case, file, values):
        tensors = []
        for name in sorted(next(iter(values.values()))):
            shape = list(model.tensors[name].shape)
            norms = {label: float(f"{found[name].double().norm().item():.9g}")
                     for label, found in values.items()}
            tensors.append(dict(name=name, shape=shape, rows=rows_of(shape), norms=norms))
        embeddings = sorted(k for k in case.extra if k.startswith("bundle_emb."))
        before = [dict(file=self.files[name], unet=unet, te=text)
                  for name, unet, text in case.after]
        alias, digest = (None, None) if file.is_dir() else self.webui.on_disk(file)
        return dict(
            name=case.name, base=case.base, file=file.name, alias=alias, hash=digest, format=case.format, naming=case.naming,
            dtype=str(case.dtype).removeprefix("torch."), reference=REFERENCES[case.reference],
            values=case.values or case.name, tolerance=TOLERANCE, unmatched=sorted(case.unmatched),
            embeddings=embeddings, note=case.note,
            weights=[dict(label=label, adapters=[*before, dict(file=file.name, unet=unet, te=text)])
                     for label, unet, text in case.weights],
            tensors=tensors, runs=[])

    def store(self, model, case, described, values):
        for label, tensors in values.items():
            for tensor in described["tensors"]:
                whole = tensors[tensor["name"]].float()
                part = whole if tensor["rows"] is None else whole[tensor["rows"]]
                self.tensors[f"{case.name}/{label}/{tensor['name']}"] = part.contiguous()
        if case.run:
            label, tensors = next(iter(values.items()))
            golden = safetensors.torch.load_file(HERE / case.base / "golden.safetensors")
            # Other processors round in another way.
            assert relative(golden[f"{case.run}.latents"], model.run(case.run)) < 3e-5
            with model.changed(tensors):
                latents = model.run(case.run)
            self.tensors[f"{case.name}/{label}/{case.run}.latents"] = latents
            self.mistakes.runs(model, case, values, latents)
            described["runs"].append(dict(label=label, run=case.run, tolerance=1e-4))

    def store_embeddings(self, case, described):
        """Records the textual inversions that WebUI finds in the file."""
        found = {}
        for name, vectors in self.webui.embeddings.items():
            by_tower = vectors if isinstance(vectors, dict) else {"clip_l": vectors}
            found |= {f"bundle_emb.{name}.{tower}": v for tower, v in by_tower.items()}
        assert sorted(found) == described["embeddings"]
        self.tensors |= {f"{case.name}/{name}": v.contiguous() for name, v in found.items()}

    def write(self):
        safetensors.torch.save_file(self.tensors, OUT / "expected.safetensors")
        (OUT / "expected.safetensors").chmod(0o644)
        lines = []
        for case in self.cases:
            tensors = ",\n  ".join(json.dumps(t, separators=(",", ":")) for t in case["tensors"])
            head = json.dumps({k: v for k, v in case.items() if k != "tensors"})
            lines.append(f"{head[:-1]}, \"tensors\": [\n  {tensors}]}}")
        (OUT / "cases.json").write_text("[" + ",\n".join(lines) + "]\n")
        size = sum(f.stat().st_size for f in OUT.rglob("*") if f.is_file())
        print(f"{len(self.cases)} cases, {size} bytes")


REFERENCES = {
    "webui": references.WEBUI,
    "diffusers": "diffusers 0.42.1: load_lora_weights, fuse_lora",
    "comfy": references.COMFY + ": comfy.lora.calculate_weight",
    "lycoris": "lycoris-lora 4.1.3: get_merged_weight",
    "diffusers-1": "diffusers 0.42.1: fuse_lora at weight 1; " + references.WEBUI
                   + ": the change as a full difference",
    "peft": "peft 0.21.2: merge_and_unload",
    "peft-1": "peft 0.21.2: merge_and_unload at weight 1; " + references.WEBUI
              + ": the change as a full difference",
    "lycoris-1": "lycoris-lora 4.1.3: get_merged_weight(1); " + references.WEBUI
                 + ": the change as a full difference",
}


def rows_of(shape):
    """Returns the rows of a tensor that are stored, or None for all of them."""
    count, width = shape[0], 1
    for size in shape[1:]:
        width *= size
    if count * width <= MOST_NUMBERS:
        return None
    kept = min(count, max(3, MOST_NUMBERS // width))
    return sorted({round(i * (count - 1) / (kept - 1)) for i in range(kept)})


if __name__ == "__main__":
    main()
