"""The cases of `lora.py`: which adapter, for which small model, under which names."""

import dataclasses

import torch

import lora_formats as formats
from lora_formats import Draw

BOTH = [("1", 1.0, 1.0), ("0.7", 0.7, 0.7)]
D0 = "down_blocks.0.attentions.0"
T0 = f"{D0}.transformer_blocks.0"

# Linear layers of `four`, its 1×1 convolutions, and one of each kind in the text encoder.
LINEAR_1 = [
    ("unet", f"{D0}.proj_in"),
    ("unet", f"{T0}.attn1.to_q"),
    ("unet", f"{T0}.attn1.to_out.0"),
    ("unet", "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"),
    ("unet", "up_blocks.3.attentions.2.transformer_blocks.0.ff.net.0.proj"),
    ("unet", "up_blocks.3.attentions.2.transformer_blocks.0.ff.net.2"),
    ("unet", "up_blocks.3.attentions.1.proj_out"),
    ("unet", "down_blocks.1.resnets.1.time_emb_proj"),
    ("text_encoder", "encoder.layers.0.self_attn.q_proj"),
    ("text_encoder", "encoder.layers.1.self_attn.out_proj"),
    ("text_encoder", "encoder.layers.2.mlp.fc1"),
    ("text_encoder", "encoder.layers.3.mlp.fc2"),
]
# Attention only, as the first files of diffusers.
ATTENTION_1 = [
    *(("unet", f"{T0}.attn1.{p}") for p in ("to_q", "to_k", "to_v", "to_out.0")),
    ("unet", "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_k"),
    *(("text_encoder", f"encoder.layers.0.self_attn.{p}_proj") for p in ("q", "k", "v", "out")),
]
CONVOLUTIONS_1 = [
    ("unet", "conv_in"),
    ("unet", "down_blocks.0.resnets.0.conv1"),
    ("unet", "down_blocks.0.downsamplers.0.conv"),
    ("unet", "down_blocks.1.resnets.0.conv_shortcut"),
    ("unet", f"{D0}.proj_in"),
    ("unet", "up_blocks.2.upsamplers.0.conv"),
    ("unet", "conv_out"),
    ("unet", "time_embedding.linear_1"),
]
LINEAR_2 = [
    ("unet", f"{D0}.proj_in"),
    ("unet", f"{T0}.attn1.to_k"),
    ("unet", "down_blocks.1.attentions.1.transformer_blocks.0.attn2.to_v"),
    ("unet", "up_blocks.2.attentions.0.transformer_blocks.0.ff.net.2"),
    ("unet", "mid_block.attentions.0.proj_out"),
    ("unet", "up_blocks.0.resnets.2.time_emb_proj"),
    *(("text_encoder", f"encoder.layers.1.self_attn.{p}_proj") for p in ("q", "k", "v", "out")),
    ("text_encoder", "encoder.layers.0.mlp.fc1"),
    ("text_encoder", "encoder.layers.2.mlp.fc2"),
]
X1 = "down_blocks.1.attentions.0.transformer_blocks.1"
LAYER_XL = "text_model.encoder.layers"
LINEAR_XL = [
    ("unet", "down_blocks.1.attentions.0.proj_in"),
    ("unet", f"{X1}.attn1.to_q"),
    ("unet", f"{X1}.attn2.to_v"),
    ("unet", "mid_block.attentions.0.transformer_blocks.2.attn1.to_out.0"),
    ("unet", "up_blocks.1.attentions.1.transformer_blocks.0.ff.net.2"),
    ("unet", "up_blocks.0.attentions.0.proj_out"),
    ("text_encoder", "encoder.layers.0.self_attn.q_proj"),
    ("text_encoder", "encoder.layers.1.self_attn.out_proj"),
    ("text_encoder", "encoder.layers.1.mlp.fc1"),
    *(("text_encoder_2", f"{LAYER_XL}.2.self_attn.{p}_proj") for p in ("q", "k", "v", "out")),
    ("text_encoder_2", f"{LAYER_XL}.0.mlp.fc1"),
    ("text_encoder_2", f"{LAYER_XL}.1.mlp.fc2"),
]
# What distilled models such as LCM change: convolutions and embeddings, too.
EVERYWHERE_XL = [
    ("unet", "conv_in"),
    ("unet", "time_embedding.linear_1"),
    ("unet", "add_embedding.linear_1"),
    ("unet", "down_blocks.0.resnets.0.time_emb_proj"),
    ("unet", "down_blocks.0.downsamplers.0.conv"),
    ("unet", "down_blocks.1.resnets.0.conv_shortcut"),
    ("unet", "mid_block.resnets.1.conv2"),
    ("unet", "up_blocks.2.resnets.1.conv1"),
    ("unet", "up_blocks.1.upsamplers.0.conv"),
    ("unet", f"{X1}.attn2.to_k"),
    ("unet", "down_blocks.1.attentions.0.proj_in"),
]


@dataclasses.dataclass
class Case:
    """An adapter and its file.

    `reference` names the program that makes the expected values:

    - `webui`: WebUI reads the file, or the same adapter under kohya's names.
    - `lycoris`: LyCORIS, at every weight.
    - `comfy`: ComfyUI, at every weight.
    - `diffusers`: diffusers fuses the file.
    - `peft`: peft merges the folder, at every weight.
    - `lycoris-1`, `peft-1`, `diffusers-1`: the change at weight 1 is this program's. WebUI applies
      this change as a full difference, at every weight.

    `reuse` names the case whose file this case uses, and `after` the adapters that are applied
    before it: the name of a case, a weight for the UNet and a weight for the text encoders.
    """

    name: str
    base: str
    format: str
    naming: str
    adapter: dict
    reference: str = "webui"
    weights: list = dataclasses.field(default_factory=lambda: list(BOTH))
    values: str | None = None
    dtype: torch.dtype = torch.float32
    suffix: str = ".safetensors"
    reuse: str | None = None
    after: tuple = ()
    config: dict | None = None
    metadata: dict | None = None
    convert: bool = False
    extra: dict = dataclasses.field(default_factory=dict)
    unmatched: tuple = ()
    run: str | None = None
    note: str | None = None


def adapter_of(models, seed, modules, draw=formats.lora, **options):
    """Draws the parts of each module. The seed is a name, so that cases can have equal factors."""
    found = {}
    for component, module in modules:
        shape = models[component].get_submodule(module).weight.shape
        found[component, module] = draw(Draw(seed, component, module), shape, **options)
    return found


def each(models, seed, modules):
    """Draws the parts of each module with its own function. `modules` maps module to function."""
    found = {}
    for (component, module), draw in modules.items():
        layer = models[component].get_submodule(module)
        found[component, module] = draw(Draw(seed, component, module), layer)
    return found


def shaped(function, **options):
    """Returns a function for `each` that draws for the shape of the weight."""
    return lambda draw, layer: function(draw, layer.weight.shape, **options)


def dora(axis, function=formats.lora, **options):
    def parts(draw, layer):
        drawn = function(draw, layer.weight.shape, **options)
        return formats.magnitude(draw, drawn, layer.weight, axis)

    return parts


def kohya_metadata(version, **rest):
    """Returns some of the metadata that kohya's scripts write."""
    return dict(ss_base_model_version=version, ss_network_module="networks.lora",
                ss_network_dim="3", ss_network_alpha="2.0", ss_output_name="fox style",
                ss_tag_frequency='{"10_fox": {"fox": 12, "watercolour": 7}}', ss_v2="False") | rest


def sd1(models):
    linear = adapter_of(models, "linear", LINEAR_1)
    attention = adapter_of(models, "attention", ATTENTION_1, alpha=None)
    unet_only = {k: v for k, v in attention.items() if k[0] == "unet"}
    one = list(BOTH)
    mixed = one + [("unet-1.2-te-0.5", 1.2, 0.5), ("-0.6", -0.6, -0.6)]

    def case(name, format, naming, adapter, **rest):
        return Case(f"sd1-{name}", "four", format, naming, adapter, **rest)

    yield case("lora", "lora", "kohya", linear, weights=mixed, run="run.euler-leading",
               metadata=kohya_metadata("sd_v1"))
    yield case("pt", "lora", "kohya", linear, suffix=".pt", values="sd1-lora")
    for dtype in (torch.float16, torch.bfloat16, torch.float8_e4m3fn):
        name = {torch.float16: "f16", torch.bfloat16: "bf16"}.get(dtype, "fp8")
        some = {k: linear[k] for k in LINEAR_1[1:4] + LINEAR_1[8:10]}
        yield case(name, "lora", "kohya", some, dtype=dtype)

    yield case("attention", "lora", "kohya", attention)
    yield case("diffusers-old", "lora", "diffusers_old", attention, values="sd1-attention")
    yield case("diffusers", "lora", "diffusers", attention, values="sd1-attention")
    yield case("diffusers-peft", "lora", "peft", attention, values="sd1-attention")
    yield case("attention-unet", "lora", "kohya", unet_only)
    yield case("diffusers-bare", "lora", "diffusers_bare", unet_only, values="sd1-attention-unet")
    yield case("lycoris-names", "lora", "lycoris", unet_only, values="sd1-attention-unet")
    yield case("diffusers-metadata", "lora", "diffusers_metadata", linear, values="sd1-lora")
    yield case("diffusers-mixed", "lora", "diffusers_metadata", linear, values="sd1-lora",
               convert=True, note="diffusers itself leaves out the factors named `lora.down`.")
    yield case("comfy", "lora", "comfy", linear, values="sd1-lora")
    yield case("comfy-ab", "lora", "comfy_ab", linear, values="sd1-lora")
    yield case("te1", "lora", "kohya_te1", linear, values="sd1-lora",
               note="Old files with the names of the original code.")
    yield case("reshaped", "lora", "kohya",
               adapter_of(models, "reshaped", LINEAR_1[:3] + LINEAR_1[8:9], formats.reshaped),
               note="1×1 factors for linear layers, and flat ones for a 1×1 convolution.")

    patterns = dict(linear)
    shape = models["unet"].get_submodule(LINEAR_1[2][1]).weight.shape
    patterns[LINEAR_1[2]] = formats.lora(Draw("pattern"), shape, rank=2, alpha=5.0)
    alone = {k: patterns[k] for k in LINEAR_1[:3] + LINEAR_1[5:6]}
    yield case("peft", "lora", "peft_alone", alone, suffix="",
               note="The second module has another rank and another alpha.")
    yield case("peft-text", "lora", "peft_alone", {k: linear[k] for k in LINEAR_1[8:]}, suffix="")
    few = {k: linear[k] for k in LINEAR_1[1:3]}
    yield case("peft-rslora", "rslora", "peft_alone", few, suffix="", reference="peft",
               config=dict(use_rslora=True), note="The scale is alpha / √rank.")
    spread = LINEAR_1[1:2] + LINEAR_1[4:6] + [CONVOLUTIONS_1[1]]
    drawn = each(models, "peft-dora", {k: dora(0) for k in spread})
    yield case("peft-dora", "dora-peft", "peft_alone", drawn, suffix="", reference="peft-1",
               config=dict(use_dora=True))
    yield case("diffusers-dora", "dora-peft", "diffusers_metadata", drawn,
               reference="diffusers-1", values="sd1-peft-dora", config=dict(use_dora=True))

    unmatched = {
        "lora_unet_down_blocks_7_attentions_0_proj_in.lora_down.weight": torch.ones(2, 32),
        "lora_unet_down_blocks_7_attentions_0_proj_in.lora_up.weight": torch.ones(32, 2),
        "lora_te_text_model_encoder_layers_11_mlp_fc1.lora_down.weight": torch.ones(2, 48),
        "lora_te_text_model_encoder_layers_11_mlp_fc1.lora_up.weight": torch.ones(192, 2),
        "lora_te_text_model_encoder_layers_11_mlp_fc1.alpha": torch.tensor(1.0),
        "optimizer.step": torch.tensor(100.0),
    }
    yield case("unmatched", "lora", "kohya", few, extra=unmatched, unmatched=tuple(unmatched))
    embedding = {"bundle_emb.<fox>.clip_l": Draw("fox").normal(2, 48, scale=0.5)}
    yield case("onetrainer", "lora", "kohya", few, extra=embedding, values="sd1-unmatched",
               note="With one embedded textual inversion.")

    yield case("locon", "locon", "kohya", adapter_of(models, "locon", CONVOLUTIONS_1))
    kernels = CONVOLUTIONS_1[1:3]
    yield case("locon-mid", "locon-mid", "kohya",
               adapter_of(models, "mid", kernels, formats.locon_mid))
    yield case("loha", "loha", "kohya",
               adapter_of(models, "loha", LINEAR_1[1:4] + LINEAR_1[8:9] + CONVOLUTIONS_1[1:2],
                          formats.loha))
    yield case("loha-tucker", "loha-tucker", "kohya",
               adapter_of(models, "tucker", kernels, formats.loha_tucker))
    lokr = {
        ("unet", f"{T0}.attn1.to_q"): shaped(formats.lokr, first="full", second="full"),
        ("unet", f"{T0}.attn2.to_k"): shaped(formats.lokr, first="full", second="low"),
        ("unet", f"{T0}.attn1.to_v"): shaped(formats.lokr, first="low", second="full"),
        ("unet", f"{T0}.ff.net.2"): shaped(formats.lokr, first="low", second="low"),
        ("text_encoder", "encoder.layers.2.mlp.fc1"): shaped(formats.lokr, second="low"),
        CONVOLUTIONS_1[1]: shaped(formats.lokr, first="full", second="full"),
        CONVOLUTIONS_1[0]: shaped(formats.lokr, first="full", second="low"),
        CONVOLUTIONS_1[2]: shaped(formats.lokr, first="full", second="tucker"),
        CONVOLUTIONS_1[3]: shaped(formats.lokr, first="low", second="low"),
        ("unet", "down_blocks.0.resnets.1.conv2"):
            shaped(formats.lokr, first="low", second="tucker"),
    }
    yield case("lokr", "lokr", "kohya", each(models, "lokr", lokr))

    square, wide, tall = f"{T0}.attn1.to_q", f"{T0}.ff.net.2", f"{T0}.ff.net.0.proj"
    dora_adapters = {}
    for axis, name in ((1, "dora-columns"), (0, "dora-rows")):
        spread = {
            ("unet", square): dora(axis),
            ("unet", wide): dora(axis),
            ("unet", tall): dora(axis),
            CONVOLUTIONS_1[1]: dora(axis),
            ("unet", f"{D0}.proj_in"): dora(axis),
            ("unet", f"{T0}.attn1.to_k"): dora(axis, formats.loha),
            ("unet", f"{T0}.attn2.to_v"): dora(axis, formats.lokr, second="low"),
            ("text_encoder", "encoder.layers.0.self_attn.q_proj"): dora(axis),
        }
        dora_adapters[name] = each(models, name, spread)
        yield case(name, name, "kohya", dora_adapters[name],
                   reference="lycoris-1" if axis == 0 else "webui")

    on_output, on_input = (shaped(formats.ia3, on_input=i) for i in (False, True))
    yield case("ia3", "ia3", "kohya", each(models, "ia3", {
        ("unet", f"{T0}.attn1.to_k"): on_output,
        ("unet", f"{T0}.attn2.to_v"): on_output,
        ("unet", f"{T0}.ff.net.2"): on_input,
        CONVOLUTIONS_1[1]: on_input,
        ("text_encoder", "encoder.layers.0.self_attn.k_proj"): on_output,
        ("text_encoder", "encoder.layers.0.mlp.fc2"): on_input,
    }))
    yield case("ia3-rows", "ia3", "kohya", each(models, "ia3", {CONVOLUTIONS_1[1]: on_output}),
               reference="lycoris", note="WebUI fails on rows of a convolution.")
    oft = each(models, "oft", {
        ("unet", f"{T0}.attn1.to_q"): shaped(formats.oft),
        ("unet", f"{T0}.attn2.to_k"): shaped(formats.oft, constraint=0.02),
        ("unet", f"{T0}.ff.net.2"): shaped(formats.oft, rescale=True),
        CONVOLUTIONS_1[1]: shaped(formats.oft, constraint=0.01, rescale=True),
        ("text_encoder", "encoder.layers.0.self_attn.q_proj"): shaped(formats.oft),
    })
    yield case("oft", "oft", "kohya", oft)
    yield case("oft-diag", "oft-diag", "kohya", each(models, "oft-diag", {
        ("unet", f"{T0}.attn1.to_q"): shaped(formats.oft_diag),
        CONVOLUTIONS_1[1]: shaped(formats.oft_diag),
    }))
    yield case("boft", "boft", "kohya", each(models, "boft", {
        ("unet", f"{T0}.attn1.to_q"): shaped(formats.boft),
        ("unet", f"{T0}.attn2.to_k"): shaped(formats.boft, size=8, constraint=0.02),
        ("unet", "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"):
            shaped(formats.boft, rescale=True),
        CONVOLUTIONS_1[1]: shaped(formats.boft),
        ("text_encoder", "encoder.layers.0.self_attn.q_proj"): shaped(formats.boft, size=12),
    }))
    layers = [*(("unet", f"{T0}.{name}") for name in ("attn1.to_q", "attn2.to_k", "ff.net.2")),
              ("text_encoder", "encoder.layers.0.mlp.fc1")]
    yield case("glora", "glora", "kohya",
               adapter_of(models, "glora", layers + CONVOLUTIONS_1[1:2] + CONVOLUTIONS_1[4:5],
                          formats.glora),
               reference="lycoris")
    yield case("glora-old", "glora-old", "kohya",
               adapter_of(models, "glora-old", layers, formats.glora, old=True), reference="comfy")
    with_bias = lambda draw, layer: formats.full(draw, layer.weight.shape, len(layer.weight))
    yield case("full", "full", "kohya", each(models, "full", {
        ("unet", f"{T0}.attn1.to_q"): shaped(formats.full),
        ("unet", f"{T0}.attn1.to_out.0"): with_bias,
        ("unet", "conv_in"): with_bias,
        ("text_encoder", "encoder.layers.0.self_attn.out_proj"): with_bias,
    }))
    layer = lambda draw, layer: formats.norm(draw, len(layer.weight))
    yield case("norm", "norm", "kohya", each(models, "norm", {
        ("unet", f"{T0}.norm2"): layer,
        ("unet", f"{D0}.norm"): layer,
        ("unet", "down_blocks.0.resnets.1.norm1"): layer,
        ("unet", "up_blocks.3.resnets.2.norm2"): layer,
        ("text_encoder", "encoder.layers.0.layer_norm2"): layer,
    }))
    extras = {k: dict(linear[k]) for k in LINEAR_1[1:3]}
    extras[LINEAR_1[1]]["bias"] = Draw("bias").normal(32, 32, scale=0.1)
    extras[LINEAR_1[2]]["scale"] = torch.tensor(0.4)
    yield case("bias-scale", "bias-scale", "kohya", extras,
               note="`bias` is added before the scale, and `scale` replaces alpha / rank.")

    # Each adapter changes the weights that the one before it has made.
    both = {k: oft[k] for k in oft} | linear
    yield case("oft-after-lora", "oft", "kohya", both, reuse="sd1-oft",
               after=(("sd1-lora", 0.8, 0.5),))
    yield case("lora-after-oft", "lora", "kohya", both, reuse="sd1-lora",
               after=(("sd1-oft", 0.7, 0.7),), weights=[("0.8", 0.8, 0.5)])
    both = dora_adapters["dora-columns"] | linear
    yield case("dora-after-lora", "dora-columns", "kohya", both,
               reuse="sd1-dora-columns", after=(("sd1-lora", 0.8, 0.5),))


def sd2(models):
    def case(name, format, naming, adapter, **rest):
        return Case(f"sd2-{name}", "families/sd2-v", format, naming, adapter, **rest)

    linear = adapter_of(models, "linear", LINEAR_2)
    yield case("lora", "lora", "kohya", linear, run="run.ddim",
               metadata=kohya_metadata(
                   "sd_v2_v", ss_v2="True", sshs_model_hash="c0ffee" * 10 + "beef"))
    yield case("diffusers-metadata", "lora", "diffusers_metadata", linear, values="sd2-lora")
    yield case("comfy", "lora", "comfy", linear, values="sd2-lora")
    spread = {k: dora(1) for k in LINEAR_2[1:4] + LINEAR_2[6:10]}
    yield case("dora-columns", "dora-columns", "kohya", each(models, "dora", spread))


def sdxl(models):
    def case(name, format, naming, adapter, **rest):
        return Case(f"sdxl-{name}", "families/sdxl-base", format, naming, adapter, **rest)

    linear = adapter_of(models, "linear", LINEAR_XL)
    # One rank and one alpha differ, so that the metadata has patterns.
    shape = models["unet"].get_submodule(LINEAR_XL[1][1]).weight.shape
    linear[LINEAR_XL[1]] = formats.lora(Draw("pattern"), shape, rank=2, alpha=5.0)
    mixed = [*BOTH, ("unet-0.8-te-0.3", 0.8, 0.3)]
    yield case("lora", "lora", "kohya_sgm", linear, weights=mixed, run="run.euler",
               metadata=kohya_metadata("sdxl_base_v1-0"))
    yield case("kohya-diffusers", "lora", "kohya", linear, values="sdxl-lora")
    yield case("diffusers-metadata", "lora", "diffusers_metadata", linear, values="sdxl-lora")
    yield case("comfy", "lora", "comfy", linear, values="sdxl-lora")
    yield case("omi", "lora", "omi", linear, values="sdxl-lora")
    embedding = {"bundle_emb.<fox>.clip_l": Draw("fox-l").normal(2, 24, scale=0.5),
                 "bundle_emb.<fox>.clip_g": Draw("fox-g").normal(2, 32, scale=0.5)}
    yield case("onetrainer", "lora", "kohya", linear, extra=embedding, values="sdxl-lora",
               note="With one embedded textual inversion for both text encoders.")

    everywhere = adapter_of(models, "everywhere", EVERYWHERE_XL)
    yield case("locon", "locon", "kohya_sgm", everywhere)
    yield case("lcm", "locon", "kohya", everywhere, values="sdxl-locon",
               note="As LCM, Lightning, Hyper and DMD2 name them.")
    partial = [("unet", f"{X1}.attn1.to_q"),
               *(("text_encoder_2", f"{LAYER_XL}.0.self_attn.{p}_proj") for p in ("q", "out"))]
    yield case("partial", "lora", "kohya_sgm", adapter_of(models, "partial", partial),
               reference="diffusers",
               note="WebUI ignores an attention of OpenCLIP unless q, k, v and out are all there.")
    yield case("loha", "loha", "kohya_sgm",
               adapter_of(models, "loha", LINEAR_XL[1:3] + LINEAR_XL[6:7] + LINEAR_XL[9:13],
                          formats.loha))
    lokr = {k: shaped(formats.lokr, second="low") for k in LINEAR_XL[1:3] + LINEAR_XL[9:13]}
    yield case("lokr", "lokr", "kohya_sgm", each(models, "lokr", lokr))
    oft = {k: shaped(formats.oft, blocks=4, constraint=0.02)
           for k in [LINEAR_XL[0], LINEAR_XL[1], LINEAR_XL[2]]}
    yield case("oft-kohya", "oft", "kohya_oft", each(models, "oft", oft))
    norm = {("unet", f"{X1}.norm1"): lambda draw, layer: formats.norm(draw, len(layer.weight)),
            ("text_encoder", "encoder.layers.1.layer_norm1"):
                lambda draw, layer: formats.norm(draw, len(layer.weight))}
    yield case("norm", "norm", "kohya_sgm", each(models, "norm", norm))
    second = {("text_encoder_2", f"{LAYER_XL}.1.layer_norm1"):
                  lambda draw, layer: formats.norm(draw, len(layer.weight))}
    yield case("norm-text-2", "norm", "kohya_sgm", each(models, "norm", second),
               reference="lycoris", note="WebUI has no name for the norms of OpenCLIP.")


def inpaint(models):
    """A convolution with five more input channels than the adapter knows. They stay unchanged."""
    weight = models["unet"].conv_in.weight
    parts = formats.lora(Draw("inpaint"), (weight.shape[0], 4, 3, 3))
    adapter = {("unet", "conv_in"): parts}
    yield Case("inpaint-conv-in", "families/inpaint", "locon", "kohya", adapter)


CASES = {
    "four": sd1,
    "families/inpaint": inpaint,
    "families/sd2-v": sd2,
    "families/sdxl-base": sdxl,
}
