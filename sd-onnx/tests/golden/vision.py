"""Makes `vision/`: CLIP's vision tower with random weights, and the preprocessing of its pictures.

    pip install -r requirements.txt pillow==13.0.0 && python vision.py

`README.md` describes the files. The script asserts that each mistake moves a result by at least ten
times the tolerance of the Rust tests, and that rounding stays well within it.
"""

import math
import shutil

import numpy
import PIL
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.activations import ACT2FN
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from make import HERE, filled, hooked, relative, residual, settle, write_cases, write_model

OUT = HERE / "vision"
FIRST_SEED = 9_000_000  # above all seeds of the other scripts
LEAST = 1e-3  # the least effect of a mistake, relative L2
ROUNDING = 1e-5  # the largest effect of rounding


def vision(width, layers, heads, act, image_size, patch_size, projection):
    return dict(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
                num_attention_heads=heads, hidden_act=act, image_size=image_size,
                patch_size=patch_size, projection_dim=projection)


SHAPES = {
    # Like OpenAI's ViT-L/14: 4 × 4 patches. A pooled state as wide as the projection.
    "quick-gelu": vision(48, 4, 4, "quick_gelu", 28, 7, 32),
    # Like OpenCLIP's ViT-H/14, the encoder of most IP-Adapters, with patches of another size.
    "gelu": vision(40, 3, 5, "gelu", 32, 8, 56),
}

# Pictures by their width and height. The last is smaller than any crop.
PICTURES = {"square": (50, 50), "wide": (90, 41), "tall": (33, 71), "tiny": (21, 17)}


def picture(name):
    """Returns a picture with gradients, a checkerboard and a disc."""
    width, height = PICTURES[name]
    rows, columns = numpy.mgrid[:height, :width]
    pixels = numpy.stack([
        columns * 255 // (width - 1), 255 - rows * 255 // (height - 1),
        60 + (columns // 5 + rows // 4) % 2 * 140], axis=-1)
    disc = (columns - width * 2 // 3) ** 2 + (rows - height // 3) ** 2 < (height // 4) ** 2
    pixels[disc] = 250, 240, 20
    return pixels.astype(numpy.uint8)


def scale_and_offset(name, shape):
    """Returns the standard deviation and the mean of a tensor, so that each layer matters."""
    if "norm" in name.split(".")[-2] or "layrnorm" in name:
        return (0.1, 1.0) if name.endswith("weight") else (0.1, 0.0)
    if name.endswith("bias"):
        return 0.05, 0.0
    if "position_embedding" in name or "class_embedding" in name:
        return 0.5, 0.0
    factors = {"out_proj": 2.0, "fc2": 1.5, "q_proj": 1.5, "k_proj": 1.5}
    factor = next((f for key, f in factors.items() if key in name), 1.0)
    return float(f"{factor / math.sqrt(math.prod(shape[1:])):.4g}"), 0.0


def model_of(name):
    """Returns a model and the recipes of its weights."""
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**SHAPES[name]))
    model.config.architectures = ["CLIPVisionModelWithProjection"]
    recipes, seed = [], FIRST_SEED + 10_000 * list(SHAPES).index(name)
    for key, tensor in model.state_dict().items():
        scale, offset = scale_and_offset(key, tensor.shape)
        recipes.append(dict(name=key, shape=list(tensor.shape), seed=seed, scale=scale, offset=offset))
        seed += 1
    parts = {"image_encoder": recipes}
    filled({"image_encoder": model}, parts)
    return model, parts


def processor_of(name):
    size = SHAPES[name]["image_size"]
    return CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def preprocessed(processor, name):
    return processor(Image.fromarray(picture(name)), return_tensors="pt").pixel_values


def results(model, pixels):
    """Returns what IP-Adapters and other users read from the model."""
    output = model(pixels, output_hidden_states=True)
    penultimate = output.hidden_states[-2]
    assert len(output.hidden_states) == model.config.num_hidden_layers + 1
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    pooled = model.vision_model.post_layernorm(output.last_hidden_state[:, 0])
    assert torch.equal(output.image_embeds, model.visual_projection(pooled))
    return dict(last_hidden_state=output.last_hidden_state, penultimate=penultimate, pooled=pooled,
                image_embeds=output.image_embeds)


def resized(processor, name, **changes):
    """Returns the bytes of a picture, resized and cropped but not normalized."""
    plain = processor(Image.fromarray(picture(name)), do_rescale=False, do_normalize=False,
                      return_tensors="pt", **changes).pixel_values[0]
    assert torch.equal(plain, plain.round())
    return plain.permute(1, 2, 0).to(torch.uint8)


def corner(processor, name):
    """Returns the upper left corner of a resized picture."""
    size = processor.crop_size["height"]
    return resized(processor, name, do_center_crop=False)[:size, :size]


def golden(name):
    folder = OUT / name
    folder.mkdir(parents=True)
    model, parts = model_of(name)
    model.eval()
    processor = processor_of(name)
    # `write_model` writes the configurations of other networks side by side.
    model.config.save_pretrained(folder)
    (folder / "config.json").rename(folder / "image_encoder.json")
    write_model(folder, {}, parts)
    processor.save_pretrained(folder)
    tensors, cases = {}, dict(pictures=[])
    for key, (width, height) in PICTURES.items():
        pixels = preprocessed(processor, key)
        tensors[f"{key}.picture"] = torch.from_numpy(picture(key))
        tensors[f"{key}.cropped"] = resized(processor, key)
        tensors[f"{key}.pixel_values"] = pixels
        tensors |= {f"{key}.{k}": v for k, v in results(model, pixels).items()}
        cases["pictures"].append(dict(name=key, width=width, height=height))
    zeros = torch.zeros_like(pixels)
    tensors |= {f"zeros.{k}": v for k, v in results(model, zeros).items() if k in ("penultimate", "image_embeds")}
    write_cases(folder, tensors, cases)
    check(name, model, processor, tensors)


def check(name, model, processor, tensors):
    """Asserts that mistakes move the results and that rounding does not."""
    wrong = {}
    kinds = ("penultimate", "image_embeds", "pooled", "last_hidden_state")
    right = {key: (tensors[f"{key}.pixel_values"], {k: tensors[f"{key}.{k}"] for k in kinds})
             for key in PICTURES}

    def far(what, key="square"):
        """Compares an embedding that is computed with a mistake."""
        found = results(model, right[key][0])["image_embeds"]
        wrong[what] = min(wrong.get(what, 9), relative(right[key][1]["image_embeds"], found))

    # The pixels.
    size = model.config.image_size
    processed = lambda key, **changes: processor(
        Image.fromarray(picture(key)), return_tensors="pt", **changes).pixel_values
    wrong["pixels: squeezed"] = min(
        relative(right[key][0], processed(key, size={"height": size, "width": size}))
        for key, (width, height) in PICTURES.items() if width != height)
    for resample in ("BILINEAR", "LANCZOS", "NEAREST"):
        wrong[f"pixels: {resample.lower()}"] = min(
            relative(right[key][0], processed(key, resample=Image.Resampling[resample]))
            for key in PICTURES)
    wrong["pixels: not normalized"] = relative(right["square"][0], processed("square", do_normalize=False))
    wrong["pixels: upper left corner"] = min(
        relative(tensors[f"{key}.cropped"].float(), corner(processor, key).float())
        for key, (width, height) in PICTURES.items() if width != height)

    # The network.
    for branch, module, hook in residual(model):
        with hooked(module, hook):
            far("without one branch")
    with hooked(model.vision_model.pre_layrnorm, lambda module, args, kwargs, output: args[0]):
        far("without the first norm")
    with hooked(model.vision_model.post_layernorm, lambda module, args, kwargs, output: args[0]):
        far("without the last norm")
    activation = "gelu" if model.config.hidden_act == "quick_gelu" else "quick_gelu"
    layers = model.vision_model.encoder.layers
    kept = [layer.mlp.activation_fn for layer in layers]
    for layer in layers:
        layer.mlp.activation_fn = ACT2FN[activation]
    far("the other activation")
    for layer, one in zip(layers, kept):
        layer.mlp.activation_fn = one
    hidden = right["square"][1]
    wrong["the last layer for the penultimate one"] = relative(hidden["penultimate"], hidden["last_hidden_state"])
    wrong["the penultimate layer with the last norm"] = relative(
        hidden["penultimate"], model.vision_model.post_layernorm(hidden["penultimate"]))
    position = model.vision_model.embeddings.position_embedding.weight
    position.copy_(position.flip(0))
    far("the class embedding last")
    position.copy_(position.flip(0))
    turn = lambda module, args, kwargs, output: output.transpose(2, 3)
    with hooked(model.vision_model.embeddings.patch_embedding, turn):
        far("patches by columns")

    rounding = {}
    model.double()
    for key in PICTURES:
        for k, v in results(model, right[key][0].double()).items():
            rounding[key, k] = relative(right[key][1][k], v)
    model.float()
    print(name, {k: float(f"{v:.2g}") for k, v in wrong.items()}, f"rounding {max(rounding.values()):.1g}")
    assert min(wrong.values()) >= LEAST, min(wrong, key=wrong.get)
    assert max(rounding.values()) <= ROUNDING
    embeddings = [right[key][1]["image_embeds"] for key in PICTURES]
    assert min(relative(a, b) for a in embeddings for b in embeddings if a is not b) >= 0.05


def main():
    settle()
    assert PIL.__version__ == "13.0.0", PIL.__version__
    shutil.rmtree(OUT, ignore_errors=True)
    for name in SHAPES:
        golden(name)
    print({str(f.relative_to(OUT)): f.stat().st_size for f in sorted(OUT.rglob("*")) if f.is_file()})


if __name__ == "__main__":
    main()
