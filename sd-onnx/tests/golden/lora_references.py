"""The programs that apply an adapter to the models, for `lora.py`.

Each reference takes the models of a shape, an adapter or its file, and the weights for the UNet and
for the text encoders. It returns every tensor that changed, under today's name with the component
in front.
"""

import contextlib
import copy
import hashlib
import json
import re
import sys
import tempfile
import types
from pathlib import Path
from unittest import mock

import safetensors.torch
import torch
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from lycoris.functional.lokr import kron_weight
from lycoris.modules import IA3Module, LohaModule, LokrModule, get_module, make_module
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict

from make import HERE
from single_files import open_clip_names, unet_modules, unet_name

WEBUI = "AUTOMATIC1111/stable-diffusion-webui v1.10.1 (82a973c04367123ae98bd9abdf80d9eda9b910e2)"
COMFY = "ComfyUI 0.3.68"


def check_files(program, folder):
    """Asserts that a folder has the pinned version of each file of a program."""
    for line in (HERE / "lora-sources.sha256").read_text().splitlines():
        digest, name = line.split()
        if name.startswith(f"{program}/"):
            file = folder / name.removeprefix(f"{program}/")
            found = hashlib.sha256(file.read_bytes()).hexdigest()
            assert found == digest, f"{file} is {found}, expected {digest}"


def networks_of(models):
    return {k: m for k, m in models.items() if k == "unet" or k.startswith("text_encoder")}


def tensors_of(models):
    """Returns the tensors of the UNet and of the text encoders, with the component in front."""
    return {f"{component}.{name}": tensor.clone()
            for component, model in networks_of(models).items()
            for name, tensor in model.state_dict().items() if not name.endswith("position_ids")}


def changed(models, base):
    """Returns the tensors that differ from `base`."""
    return {k: v for k, v in tensors_of(models).items() if not torch.equal(v, base[k])}


class Webui:
    """The Lora extension of WebUI, with the rest of WebUI replaced by what the extension needs."""

    name = WEBUI

    def __init__(self, folder):
        check_files("webui", folder)
        shared = types.SimpleNamespace(
            cmd_opts=types.SimpleNamespace(
                lora_dir=tempfile.mkdtemp(), lyco_dir_backcompat="", no_hashing=False),
            opts=mock.MagicMock(lora_in_memory_limit=0, lora_functional=False),
            walk_files=lambda *args, **kwargs: [], sd_model=None)
        devices = types.SimpleNamespace(
            cpu=torch.device("cpu"), device=torch.device("cpu"), dtype=torch.float32)
        self.shared, self.devices, self.double = shared, devices, False
        stubs = {"modules.shared": shared, "modules.devices": devices}
        for name in ("gradio", "modules", "modules.sd_models", "modules.cache", "modules.errors",
                     "modules.scripts", "modules.sd_hijack", "modules.patches",
                     "modules.models", "modules.models.sd3", "modules.models.sd3.mmdit",
                     "modules.images", "modules.sd_samplers", "modules.sd_hijack_checkpoint",
                     "modules.textual_inversion", "modules.textual_inversion.dataset",
                     "modules.textual_inversion.learn_schedule",
                     "modules.textual_inversion.image_embedding",
                     "modules.textual_inversion.saving_settings"):
            stubs[name] = mock.MagicMock()
        for name in stubs:
            parent, _, leaf = name.rpartition(".")
            if parent:
                setattr(stubs[parent], leaf, stubs[name])
        stubs["modules.models.sd3.mmdit"].QkvLinear = type("QkvLinear", (torch.nn.Linear,), {})
        stubs["modules.sd_models"].read_state_dict = self.read
        sys.modules |= stubs
        stubs["modules.sd_models"].read_metadata_from_safetensors = metadata_of
        stubs["modules.cache"].cache = lambda name: {}
        stubs["modules.cache"].cached_data_for_file = lambda name, title, file, read: read()
        for name in ("hashes", "textual_inversion.textual_inversion"):
            path = folder / "modules" / f"{name.replace('.', '/')}.py"
            module = types.ModuleType(f"modules.{name}")
            sys.modules[module.__name__] = module
            parent, _, leaf = module.__name__.rpartition(".")
            setattr(stubs[parent], leaf, module)
            exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
        sys.path.insert(0, str(folder / "extensions-builtin/Lora"))
        import networks

        self.networks = networks
        networks.extra_network_lora = types.SimpleNamespace(errors={})

    def on_disk(self, file):
        """Returns the alias and the hash that WebUI shows for a file."""
        with contextlib.redirect_stdout(None):
            found = self.networks.network.NetworkOnDisk(file.stem, str(file))
            found.read_hash()
        return found.alias, found.shorthash

    def read(self, file):
        if Path(file).suffix == ".pt":
            tensors = torch.load(file, weights_only=True)
        else:
            tensors = safetensors.torch.load_file(file)
        floats = {k: v.double() if self.double and v.is_floating_point() else v
                  for k, v in tensors.items()}
        return floats

    def apply(self, models, applications):
        """Applies files with kohya's names in their order."""
        base = tensors_of(models)
        modules, restore = self.attach(models)
        nets = []
        try:
            for index, (file, unet, text) in enumerate(applications):
                on_disk = types.SimpleNamespace(filename=str(file))
                net = self.networks.load_network(str(index), on_disk)
                net.unet_multiplier, net.te_multiplier, net.dyn_dim = unet, text, None
                nets.append(net)
            self.networks.loaded_networks = nets
            self.networks.extra_network_lora.errors.clear()
            for module in modules:
                self.networks.network_apply_weights(module)
            errors = dict(self.networks.extra_network_lora.errors)
            assert not errors, errors
            restore()
            self.embeddings = {
                name: e.vec for net in nets for name, e in net.bundle_embeddings.items()}
            return changed(models, base)
        finally:
            self.networks.loaded_networks = []
            for component, model in networks_of(models).items():
                for name, tensor in model.state_dict().items():
                    if f"{component}.{name}" in base:
                        tensor.copy_(base[f"{component}.{name}"])

    def attach(self, models):
        """Gives every module the name that it has in WebUI. Returns the modules, and a function
        that copies the attentions of OpenCLIP back."""
        is_xl = "text_encoder_2" in models
        is_sd2 = not is_xl and models["unet"].config.use_linear_projection
        mapping, back = {}, []
        kinds = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.GroupNorm, torch.nn.LayerNorm)
        blocks = unet_modules(models["unet"].config)
        for component, model in networks_of(models).items():
            index = "1_" if component == "text_encoder_2" else "0_" if is_xl else ""
            open_clip = is_sd2 or component == "text_encoder_2"
            for name, module in model.named_modules():
                if not isinstance(module, kinds):
                    continue
                name = name.removeprefix("text_model.")
                if component == "unet":
                    webui = "diffusion_model." + unet_name(f"{name}.weight", blocks)[:-7]
                elif not open_clip:
                    webui = f"{index}transformer.text_model.{name}"
                elif ".self_attn." in name or name == "text_projection":
                    continue
                else:
                    webui = f"{index}model." + open_clip_names("")(f"{name}.weight")[0][:-7]
                mapping[webui.replace(".", "_")] = module
            if is_sd2 and component == "text_encoder":
                mapping["model_transformer_resblocks"] = model.encoder.layers
            if component != "unet" and open_clip:
                for layer, block in enumerate(getattr(model, "text_model", model).encoder.layers):
                    fused = FusedAttention(block.self_attn)
                    key = f"{index}model_transformer_resblocks_{layer}_attn"
                    mapping[key], mapping[f"{key}_out_proj"] = fused.module, fused.module.out_proj
                    back.append(fused)
        for name, module in mapping.items():
            module.network_layer_name = name
            self.networks.network_reset_cached_weight(module)
        self.shared.sd_model = types.SimpleNamespace(is_sdxl=is_xl, network_layer_mapping=mapping)
        outputs = {f.module.out_proj for f in back}
        found = [m for m in mapping.values() if m not in outputs
                 and isinstance(m, (*kinds, torch.nn.MultiheadAttention))]
        return found, lambda: [f.copy_back() for f in back]


def metadata_of(file):
    with safetensors.safe_open(file, "pt") as opened:
        return opened.metadata()


class FusedAttention:
    """An attention of OpenCLIP with the weights of an attention of transformers."""

    def __init__(self, attention):
        self.attention = attention
        width = attention.q_proj.weight.shape[0]
        self.module = torch.nn.MultiheadAttention(width, 1).to(attention.q_proj.weight.dtype)
        self.module.requires_grad_(False)
        self.module.in_proj_weight.copy_(torch.cat([p.weight for p in self.parts()]))
        self.module.in_proj_bias.copy_(torch.cat([p.bias for p in self.parts()]))
        self.module.out_proj.weight.copy_(attention.out_proj.weight)
        self.module.out_proj.bias.copy_(attention.out_proj.bias)

    def parts(self):
        return self.attention.q_proj, self.attention.k_proj, self.attention.v_proj

    def copy_back(self):
        for part, weight, bias in zip(self.parts(), self.module.in_proj_weight.chunk(3),
                                      self.module.in_proj_bias.chunk(3)):
            part.weight.copy_(weight)
            part.bias.copy_(bias)
        self.attention.out_proj.weight.copy_(self.module.out_proj.weight)
        self.attention.out_proj.bias.copy_(self.module.out_proj.bias)


def lycoris(models, adapter, weight, on_output=True, merge=False, refused=None):
    """Returns the tensors that LyCORIS' modules make of an adapter, at one weight.

    LyCORIS reads every `dora_scale` as lengths of rows. With `on_output` false, the modules are
    built for lengths of columns. Its LoHa and LoKr multiply by alpha / rank twice when they merge,
    but once in training, which is what counts. With `merge`, the function returns what they merge.
    Modules that LyCORIS cannot read are added to `refused`, if that is given."""
    found = {}
    for (component, name), parts in adapter.items():
        module = models[component].get_submodule(name)
        try:
            changed, bias = lycoris_module(module, parts, weight, on_output, merge)
        except (AttributeError, RuntimeError, TypeError) as error:
            if refused is None:
                raise
            if "dora_scale" not in parts and ("lokr_w1" in parts or "lokr_w1_a" in parts):
                # Its modules cannot be made for every pair of factors, but its arithmetic can.
                change = kronecker(parts).reshape(module.weight.shape)
                found[f"{component}.{name}.weight"] = module.weight + weight * change
                continue
            refused[f"{component}.{name}"] = f"{type(error).__name__}: {error}"
            continue
        found[f"{component}.{name}.weight"] = changed
        if bias is not None:
            found[f"{component}.{name}.bias"] = bias
    return found


def kronecker(parts):
    names = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
    factors = [parts.get(f"lokr_{name}") for name in names]
    low = [len(factor) for factor in (factors[5], factors[2]) if factor is not None]
    scale = parts["alpha"].item() / low[0] if low else 1.0
    return kron_weight(*factors, scale=scale)


def lycoris_module(module, parts, weight, on_output, merge):
    if "lora_down.weight" in parts and "alpha" not in parts:  # LyCORIS always writes it
        parts = parts | {"alpha": torch.tensor(float(len(parts["lora_down.weight"])))}
    lengths = parts.get("dora_scale")
    read = {f"x.{k}": v for k, v in parts.items() if on_output or k != "dora_scale"}
    kind, values = get_module(read, "x")
    if kind is IA3Module:  # Its own reading fails.
        made = IA3Module("x", module, train_on_input=bool(parts["on_input"]))
        made.weight.copy_(parts["weight"])
    else:
        made = make_module(kind, values, "x", module)
    if lengths is not None and not on_output:
        made.wd, made.wd_on_out, made.dora_scale = True, False, lengths
    shape = module.weight.shape
    if kind not in (LohaModule, LokrModule) or merge:
        changed, bias = made.get_merged_weight(weight, shape=shape)
        return changed.reshape(shape), bias
    change = made.get_weight(shape) * made.scalar
    if made.wd:
        return made.apply_weight_decompose(module.weight + change, weight), None
    return module.weight + change * weight, None


def merged(models):
    """Returns the tensors of models in which peft has merged its layers."""
    found = {}
    for component, model in networks_of(models).items():
        for name, tensor in model.state_dict().items():
            if ".lora_" not in name and not name.endswith("position_ids"):
                found[f"{component}.{name.replace('.base_layer', '')}"] = tensor.clone()
    return found


def diffusers(pipeline, file, unet, text):
    """Returns the tensors that diffusers fuses."""
    pipeline = copy.deepcopy(pipeline)
    models = {k: m for k, m in pipeline.components.items() if isinstance(m, torch.nn.Module)}
    base = tensors_of(models)
    pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="x")
    for component, model in networks_of(models).items():
        if any(".lora_A" in name for name in model.state_dict()):
            scale = unet if component == "unet" else text
            pipeline.fuse_lora(components=[component], lora_scale=scale, adapter_names=["x"])
    return {k: v for k, v in merged(models).items() if not torch.equal(v, base[k])}


def peft_config(parts, **config):
    """Returns peft's configuration of an adapter. The first module has the usual rank and alpha."""
    ranks = {k: len(p["lora_down.weight"]) for k, p in parts.items()}
    alphas = {k: p["alpha"].item() for k, p in parts.items()}
    rank, alpha = (next(iter(values.values())) for values in (ranks, alphas))
    return LoraConfig(
        target_modules=list(parts), r=rank, lora_alpha=alpha, base_model_name_or_path=None,
        rank_pattern={k: v for k, v in ranks.items() if v != rank},
        alpha_pattern={k: v for k, v in alphas.items() if v != alpha}, **config)


def set_peft(network, config, parts):
    """Sets the factors of a network's adapter, and puts the configuration into a fixed order."""
    for name, values in parts.items():
        layer = network.get_submodule(name)
        layer.lora_A["default"].weight.copy_(values["lora_down.weight"])
        layer.lora_B["default"].weight.copy_(values["lora_up.weight"])
        rank = len(values["lora_down.weight"]) ** (0.5 if config.use_rslora else 1)
        assert layer.scaling["default"] == values["alpha"].item() / rank
        if "dora_scale" in values:
            lengths = layer.lora_magnitude_vector["default"].weight
            lengths.copy_(values["dora_scale"].reshape(lengths.shape))
    config.target_modules = sorted(parts)


def save_peft(model, parts, config, folder):
    """Writes the folder that peft writes for an adapter of one network."""
    config = peft_config(parts, **config)
    wrapped = get_peft_model(copy.deepcopy(model), config)
    set_peft(wrapped.base_model.model, config, parts)
    wrapped.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    tidy(folder / "adapter_model.safetensors")


def save_diffusers(pipeline, adapter, config, file, convert):
    """Writes the file of diffusers' training scripts, with the alphas in the metadata.

    With `convert`, the factors of attentions have diffusers' own names, as the scripts do it."""
    layers, networks = {}, {}
    for component in dict.fromkeys(component for component, _ in adapter):
        parts = {module: p for (c, module), p in adapter.items() if c == component}
        network = copy.deepcopy(getattr(pipeline, component))
        network.add_adapter(peft_config(parts, **config), adapter_name="default")
        set_peft(network, network.peft_config["default"], parts)
        state = get_peft_model_state_dict(network, adapter_name="default")
        state = convert_state_dict_to_diffusers(state) if convert else state
        layers[f"{component}_lora_layers"], networks[component] = state, network
    metadata = _collate_lora_metadata(networks)
    type(pipeline).save_lora_weights(file.parent, weight_name=file.name, **layers, **metadata)
    tidy(file)


def tidy(file):
    """Sorts the metadata of a file, which has another order in every run."""
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps({"__metadata__": header.pop("__metadata__"), **header}, separators=(",", ":"))
    text = text.encode().ljust(size)
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    file.chmod(0o644)


def peft(model, component, folder, weight):
    """Returns the tensors that peft merges."""
    base = tensors_of({component: model})
    wrapped = PeftModel.from_pretrained(copy.deepcopy(model), str(folder))
    for module in wrapped.modules():
        if isinstance(module, LoraLayer):
            module.scale_layer(weight)
    found = merged({component: wrapped.merge_and_unload()})
    return {k: v for k, v in found.items() if not torch.equal(v, base[k])}


def cast_to_device(tensor, device, dtype, copy=False):
    return tensor.to(dtype, copy=copy)


class Comfy:
    """ComfyUI's reading of adapters, with the rest of ComfyUI replaced by what that needs."""

    name = COMFY

    def __init__(self, folder):
        check_files("comfy", folder)
        package = types.ModuleType("comfy")
        package.__path__ = [str(folder / "comfy")]
        sys.modules["comfy"] = package
        for name in ("checkpoint_pickle", "cli_args"):
            sys.modules[f"comfy.{name}"] = mock.MagicMock()
        management = types.ModuleType("comfy.model_management")
        management.cast_to_device = cast_to_device
        bases = types.ModuleType("comfy.model_base")
        for name in re.findall(r"model_base\.(\w+)", (folder / "comfy/lora.py").read_text()):
            setattr(bases, name, type(name, (), {}))
        for module in (management, bases):
            sys.modules[module.__name__] = module
            setattr(package, module.__name__.rpartition(".")[2], module)
        import comfy.lora

        self.lora = comfy.lora

    def keys(self, models):
        """Returns ComfyUI's map from the names in a file to today's names."""
        config, stored, today = models["unet"].config, {}, {}
        names = unet_modules(config)
        for name, tensor in models["unet"].state_dict().items():
            own = "diffusion_model." + unet_name(name, names)
            stored[own], today[own] = tensor, f"unet.{name}"
        levels, layers = len(config.block_out_channels), config.layers_per_block
        depth = config.transformer_layers_per_block
        depths = depth if isinstance(depth, (list, tuple)) else [depth] * levels
        down = [d if "CrossAttn" in kind else 0 for d, kind in zip(depths, config.down_block_types)]
        unet_config = dict(
            num_res_blocks=[layers] * levels, channel_mult=[1] * levels,
            transformer_depth=[d for d in down for _ in range(layers)],
            transformer_depth_output=[d for d in down for _ in range(layers + 1)],
            transformer_depth_middle=depths[-1])
        model = types.SimpleNamespace(
            state_dict=lambda: stored, model_config=types.SimpleNamespace(unet_config=unet_config))
        found = self.lora.model_lora_keys_unet(model, {})
        text = {}
        is_sd2 = "text_encoder_2" not in models and config.use_linear_projection
        for component, model in networks_of(models).items():
            if component == "unet":
                continue
            tower = "clip_g" if component == "text_encoder_2" else "clip_h" if is_sd2 else "clip_l"
            for name, tensor in model.state_dict().items():
                own = name if name.startswith("text_") else f"text_model.{name}"
                own = f"{tower}.transformer.{own}"
                text[own], today[own] = tensor, f"{component}.{name}"
        model = types.SimpleNamespace(state_dict=lambda: text)
        found |= self.lora.model_lora_keys_clip(model, {})
        return {k: today[v] for k, v in found.items() if v in today}

    def apply(self, models, tensors, unet, text, keys=None):
        """Returns the changed tensors, and the names of tensors in the file that fit nothing."""
        base, used = tensors_of(models), set()
        keys = keys or self.keys(models)
        patches = self.lora.load_lora({k: v.clone() for k, v in tensors.items()}, keys, False)
        found = {}
        for name, patch in patches.items():
            strength = unet if name.startswith("unet.") else text
            entry = [(strength, patch, 1.0, None, None)]
            found[name] = self.lora.calculate_weight(entry, base[name].clone(), name)
            used |= getattr(patch, "loaded_keys", set())
        return found, used
