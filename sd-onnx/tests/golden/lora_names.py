"""The names that programs give to the tensors of an adapter.

An adapter maps (component, module) to the parts of `lora_formats.py`. A module has today's name in
`weights.json`. Each function of `NAMINGS` returns the name of a part in a file, or None where the
naming has no name for it.
"""

from single_files import unet_modules, unet_name

PARTS_PEFT = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight",
              "dora_scale": "lora_magnitude_vector"}
PARTS_DIFFUSERS = {"lora_down.weight": "lora.down.weight", "lora_up.weight": "lora.up.weight"}
PARTS_LINEAR = {"lora_down.weight": "lora_linear_layer.down.weight",
                "lora_up.weight": "lora_linear_layer.up.weight"}


def long_name(component, module):
    """Returns the name of a module with `text_model.`, which transformers 5 left out of one of its
    two classes."""
    if component == "unet" or module.startswith("text_"):
        return module
    return f"text_model.{module}"


def sgm(model, module):
    """Returns the name of a module of the UNet in the code of Stability AI."""
    name = unet_name(f"{module}.weight", unet_modules(model.config))
    return name.removesuffix(".weight")


class Names:
    """The names of the modules of one model."""

    def __init__(self, models):
        self.models, self.is_xl = models, "text_encoder_2" in models
        self.is_sd2 = not self.is_xl and models["unet"].config.use_linear_projection

    def kohya(self, component, module, part):
        """kohya's names, with diffusers' blocks."""
        if component == "unet":
            prefix = "lora_unet_"
        elif component == "text_encoder_2":
            prefix = "lora_te2_"
        else:
            prefix = "lora_te1_" if self.is_xl else "lora_te_"
        return f"{prefix}{long_name(component, module).replace('.', '_')}.{part}"

    def kohya_sgm(self, component, module, part):
        """kohya's names for SDXL, with the blocks of Stability AI."""
        if component != "unet":
            return self.kohya(component, module, part)
        return f"lora_unet_{sgm(self.models['unet'], module).replace('.', '_')}.{part}"

    def kohya_te1(self, component, module, part):
        """Old files for SD 1 with the names of the original code."""
        return self.kohya_sgm(component, module, part).replace("lora_te_", "lora_te1_")

    def kohya_oft(self, component, module, part):
        """kohya's names for OFT on SDXL."""
        return self.kohya_sgm(component, module, part).replace("lora_unet_", "oft_unet_")

    def lycoris(self, component, module, part):
        """The names of LyCORIS outside kohya's scripts."""
        if component != "unet":
            return None
        return f"lycoris_{module.replace('.', '_')}.{part}"

    def diffusers_old(self, component, module, part):
        """diffusers before 0.20: attention only, no alpha."""
        if part == "alpha":
            return None
        block, _, leaf = module.rpartition(".")
        if component == "unet":
            if leaf == "0":
                block, leaf = block.rpartition(".")[0], "to_out"
            block = f"{block}.processor"
        else:
            leaf = f"to_{leaf.removesuffix('_proj')}"
        end = PARTS_DIFFUSERS[part].removeprefix("lora.")
        return f"{component}.{long_name(component, block)}.{leaf}_lora.{end}"

    def diffusers_bare(self, component, module, part):
        """The oldest files of diffusers: the UNet only, without a prefix."""
        if component != "unet":
            return None
        name = self.diffusers_old(component, module, part)
        return name and name.removeprefix("unet.")

    def diffusers(self, component, module, part):
        """diffusers from 0.20 to 0.26, and later for files that are not of peft."""
        if part == "alpha":
            return None
        parts = PARTS_DIFFUSERS if component == "unet" else PARTS_LINEAR
        return f"{component}.{long_name(component, module)}.{parts[part]}"

    def peft(self, component, module, part):
        """diffusers today. The alphas are in the metadata."""
        if part == "alpha":
            return None
        return f"{component}.{long_name(component, module)}.{PARTS_PEFT[part]}"

    def comfy(self, component, module, part):
        """The names of ComfyUI, which are the names in its models."""
        if component == "unet":
            return f"diffusion_model.{sgm(self.models['unet'], module)}.{part}"
        tower = "clip_g" if component == "text_encoder_2" else "clip_h" if self.is_sd2 else "clip_l"
        return f"text_encoders.{tower}.transformer.{long_name(component, module)}.{part}"

    def comfy_ab(self, component, module, part):
        """The names of ComfyUI's models with peft's names of the factors."""
        return self.comfy(component, module, PARTS_PEFT.get(part, part))

    def omi(self, component, module, part):
        """The names of the Open Model Initiative, which OneTrainer can write."""
        if component == "unet":
            return f"unet.{sgm(self.models['unet'], module)}.{part}"
        tower = "clip_g" if component == "text_encoder_2" else "clip_l"
        return f"{tower}.{long_name(component, module)}.{part}"

    def stored(self, adapter, naming):
        """Returns the tensors of a file."""
        found = {}
        for (component, module), parts in adapter.items():
            for part, tensor in parts.items():
                name = getattr(self, naming)(component, module, part)
                if name is not None:
                    assert name not in found, name
                    found[name] = tensor.contiguous()
        return found
