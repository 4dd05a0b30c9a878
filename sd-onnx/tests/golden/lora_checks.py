"""How far the references agree, and how far mistakes move the expected values, for `lora.py`."""

import tempfile
from pathlib import Path

import safetensors.torch
import torch

import lora_references as references
from make import relative

LEAST = 1e-4  # that a mistake must move a changed tensor: a hundred times the tolerance
PROGRAMS = ("WebUI", "LyCORIS", "LyCORIS, merged", "ComfyUI", "diffusers", "peft")

# The program whose names a file has, and which must therefore read all of it. WebUI reads kohya's.
READERS = {
    "comfy": "ComfyUI", "comfy_ab": "ComfyUI", "lycoris": "ComfyUI", "diffusers_bare": "ComfyUI",
    "diffusers": "diffusers", "diffusers_old": "diffusers", "diffusers_metadata": "diffusers",
    "peft": "diffusers", "peft_alone": "peft",
}


def distance(found, expected, base):
    """Returns the largest relative L2 difference of a tensor. A missing tensor counts as
    unchanged."""
    names = expected.keys() | found.keys()
    return max(relative(expected.get(k, base[k]), found.get(k, base[k])) for k in names)


class Agreement:
    """The largest difference of each program from the expected values, by format and weight.

    Tensors that a program leaves unchanged are counted instead."""

    def __init__(self, webui, comfy):
        self.webui, self.comfy = webui, comfy
        self.figures, self.rounding = {}, {}

    def add(self, model, case, adapter, file, plain, values):
        if case.after:
            return
        for label, unet, text in case.weights:
            kind = "at 1" if label == "1" else "else"
            for program, function in self.programs(model, case, adapter, file, plain, unet, text):
                try:
                    found = function()
                except Exception as error:
                    found = {}
                    self.report(case, program, label, f"refuses: {str(error)[:100]!r}")
                far, left = 0.0, []
                for name, tensor in values[label].items():
                    if name not in found or torch.equal(found[name], model.tensors[name]):
                        left.append(name)
                    else:
                        far = max(far, relative(tensor, found[name]))
                row = self.figures.setdefault((case.format, program, kind), [0.0, 0, 0])
                row[0], row[1] = max(row[0], far), row[1] + len(left)
                row[2] += len(values[label])
                if program == READERS.get(case.naming) and label == "1" and not case.convert:
                    assert far <= 1e-6 and not left, (case.name, program, far, left)
                if far > 1e-6:
                    self.report(case, program, label, f"differs by {far:.2g}")
                if left and found:
                    self.report(case, program, label, f"leaves {len(left)}, such as {left[0]}")
        if case.reference == "webui" and case.dtype == torch.float32:
            self.round(model, case, plain, values)

    def report(self, case, program, label, what):
        print(f"{case.name} at {label}: {program} {what}")

    def lycoris(self, model, case, adapter, weight, merge):
        refused = {}
        rows = "columns" not in case.format
        return references.lycoris(model.models, adapter, weight, rows, merge, refused)

    def programs(self, model, case, adapter, file, plain, unet, text):
        """Lists the programs that can read the format, each with a function that applies it."""
        yield "WebUI", lambda: self.webui.apply(model.models, [(plain, unet, text)])
        own = READERS.get(case.naming) == "ComfyUI"
        tensors = self.webui.read(file if own else plain)
        yield "ComfyUI", lambda: self.comfy.apply(model.models, tensors, unet, text)[0]
        if unet == text:
            yield "LyCORIS", lambda: self.lycoris(model, case, adapter, unet, False)
            names = {part[:5] for parts in adapter.values() for part in parts}
            if names & {"hada_", "lokr_"}:
                yield "LyCORIS, merged", lambda: self.lycoris(
                    model, case, adapter, unet, True)
        if case.reference == "diffusers-1":
            yield "diffusers", lambda: references.diffusers(model.pipeline, file, unet, text)
        if case.format in ("lora", "locon"):
            if "kohya" in case.naming or "diffusers" in case.naming or case.naming == "peft":
                yield "diffusers", lambda: references.diffusers(model.pipeline, file, unet, text)
        if case.naming == "peft_alone":
            component = next(iter(adapter))[0]
            network = model.models[component]
            yield "peft", lambda: references.peft(network, component, file, unet)

    def round(self, model, case, plain, values):
        """Measures WebUI in double precision."""
        label, unet, text = case.weights[0]
        self.webui.double, self.webui.devices.dtype = True, torch.float64
        for network in model.models.values():
            network.double()
        try:
            found = self.webui.apply(model.models, [(plain, unet, text)])
        except (AssertionError, RuntimeError):  # OFT inverts in float32 in any case
            found = None
        for network in model.models.values():
            network.float()
        self.webui.double, self.webui.devices.dtype = False, torch.float32
        if found is not None:
            base = {k: v.double() for k, v in model.tensors.items()}
            exact = {k: v.double() for k, v in values[label].items()}
            far = distance(exact, found, base)
            self.rounding[case.format] = max(far, self.rounding.get(case.format, 0))

    def print(self):
        kinds = ("at 1", "else")
        print("\n| format |", " | ".join(f"{p} {k}" for p in PROGRAMS for k in kinds), "|")
        print("|---" * (1 + 2 * len(PROGRAMS)) + "|")
        for name in dict.fromkeys(key[0] for key in self.figures):
            cells = []
            for program in PROGRAMS:
                for kind in kinds:
                    far, left, count = self.figures.get((name, program, kind), (0.0, 0, 0))
                    cell = "" if count == 0 else "none" if left == count else f"{far:.1g}"
                    cells.append(cell + (f", not {left} of {count}" if 0 < left < count else ""))
            print(f"| {name} |", " | ".join(cells), "|")
        print("\nrounding:", {k: f"{v:.1g}" for k, v in self.rounding.items()})


# ------------------------------------------------------------------------------------- mistakes


def without_alpha(parts, shape):
    return {k: v for k, v in parts.items() if k != "alpha"} if "alpha" in parts else None


def square(shape):
    return shape[0] == shape[1] and all(size == 1 for size in shape[2:])


def swapped(parts, shape):
    """Takes each factor for the other one, where the shapes allow it."""
    names = set(parts)
    if {"lora_down.weight", "lora_up.weight"} <= names and square(shape):
        up, down = parts["lora_up.weight"], parts["lora_down.weight"]
        return parts | {"lora_up.weight": down.transpose(0, 1).contiguous(),
                        "lora_down.weight": up.transpose(0, 1).contiguous()}
    if {"hada_w1_a", "hada_w1_b"} <= names and "hada_t1" not in names and square(shape):
        return parts | {"hada_w1_a": parts["hada_w1_b"].T.contiguous(),
                        "hada_w1_b": parts["hada_w1_a"].T.contiguous()}
    if {"lokr_w1", "lokr_w2"} <= names and len(shape) == 2:
        return parts | {"lokr_w1": parts["lokr_w2"], "lokr_w2": parts["lokr_w1"]}
    if "oft_blocks" in names or "oft_diag" in names:
        name = "oft_blocks" if "oft_blocks" in names else "oft_diag"
        return parts | {name: parts[name].transpose(-1, -2).contiguous()}
    if "on_input" in names and square(shape):
        return parts | {"on_input": 1 - parts["on_input"].long()}
    return None


def other_direction(parts, shape):
    """Takes lengths of rows for lengths of columns, or the reverse."""
    if "dora_scale" in parts and square(shape):
        return parts | {"dora_scale": parts["dora_scale"].transpose(0, 1).contiguous()}
    return None


def without_bias(parts, shape):
    names = ("diff_b", "b_norm", "rescale", "bias", "scale", "dora_scale", "lora_mid.weight")
    kept = {k: v for k, v in parts.items() if k not in names}
    return kept if len(kept) < len(parts) and "w_norm" not in parts else None


MISTAKES = {
    "alpha left out": without_alpha,
    "factors swapped, or blocks transposed": swapped,
    "lengths of rows for columns": other_direction,
    "a bias, a rescaling, a middle factor or lengths left out": without_bias,
}
# Formats and parts in which the alpha has no effect.
NO_ALPHA = ("full", "norm", "ia3", "oft-diag", "glora-old")


class Mistakes:
    """The least effect of each mistake over all cases."""

    def __init__(self, webui):
        self.webui, self.least = webui, {}

    def note(self, what, far, case):
        assert far >= LEAST, (what, case, far)
        self.least[what] = min(self.least.get(what, (far, case)), (far, case))

    def add(self, model, case, adapter, values):
        if case.values or case.reuse:
            return
        base, labels = model.tensors, list(values)
        first, second = values[labels[0]], values[labels[1]]
        for name, tensor in first.items():
            self.note("a module left out", relative(tensor, base[name]), case.name)
            self.note("another weight", relative(tensor, second[name]), case.name)
        if case.reference != "webui":
            return
        for what, change in MISTAKES.items():
            wrong = {}
            for key, parts in adapter.items():
                shape = model.models[key[0]].get_submodule(key[1]).weight.shape
                changed = change(parts, shape)
                if changed is not None:
                    wrong[key] = changed
            wrong = {k: v for k, v in wrong.items() if acts(what, case, adapter[k])}
            if not wrong:
                continue
            naming = "kohya_sgm" if model.names.is_xl else "kohya"
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "x.safetensors"
                # WebUI wants whole attentions of OpenCLIP.
                safetensors.torch.save_file(model.names.stored(adapter | wrong, naming), file)
                label, unet, text = case.weights[0]
                found = self.webui.apply(model.models, [(file, unet, text)])
            for component, module in wrong:
                far = max(relative(first[k], found.get(k, base[k])) for k in first
                          if k.rpartition(".")[0] == f"{component}.{module}")
                self.note(what, far, case.name)

    def order(self, model, case, applications, values):
        """Applies the adapters of a case in the other order."""
        for label, reversed_applications in applications.items():
            found = self.webui.apply(model.models, reversed_applications)
            far = distance(found, values[label], model.tensors)
            self.note("two adapters in the other order", far, case.name)

    def runs(self, model, case, values, latents):
        """Leaves out one module, one text encoder or one half of a run with an adapter."""
        label = next(iter(values))
        tensors = values[label]

        def far(kept):
            with model.changed({k: tensors[k] for k in kept}):
                return relative(latents, model.run(case.run))

        effects = {name: far(set(tensors) - {name}) for name in tensors}
        self.note("latents: a module left out", min(effects.values()), case.name)
        for component in model.models:
            kept = {k for k in tensors if not k.startswith(f"{component}.")}
            self.note(f"latents: {component} left out", far(kept), case.name)
        with model.changed(values[list(values)[1]]):
            self.note("latents: another weight", relative(latents, model.run(case.run)), case.name)

    def print(self):
        print("\n| mistake | least effect | case |\n|---|---|---|")
        for what, (far, case) in sorted(self.least.items()):
            print(f"| {what} | {far:.2g} | `{case}` |")


def acts(what, case, parts):
    """Returns whether a mistake has an effect on a module."""
    if what != "alpha left out":
        return True
    if {"lokr_w1", "lokr_w2"} <= set(parts) or "scale" in parts or case.format in NO_ALPHA:
        return False
    return not ("oft_blocks" in parts and parts["alpha"] == 0)
