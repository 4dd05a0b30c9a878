"""Trains LoRAs for the small model that ships: one drawing style each, in kohya's file format.

A LoRA changes every picture, with or without its trigger phrase, so its weight alone sets how
strong the style is. It changes linear layers and convolutions of the UNet, as kohya's
`networks.lora` does with a `conv_dim`. The text encoder stays as it is.

    python lora.py            # trains all styles, then judges them
    python lora.py ink        # trains one style
    python lora.py --judge    # judges the files that are there
"""

import hashlib
import json
import struct
import sys
import time
from dataclasses import replace

import numpy as np
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image, ImageFilter, ImageOps
from safetensors.torch import load_file, save
from transformers import CLIPTextModel

from concepts import HERE, sprites
from diffusion import DROPPED, NOISE, loss_of
from scenes import BACKGROUNDS, CELL, CONCEPTS, HELD_OUT, POSITIONS, SHAPES, caption, draw, held_out, scene, single, styled
from text import load_tokenizer, read, tokens
from vae import pixels

MODEL = HERE.parent / "models/emoji"
FOLDER = MODEL / "loras"
RANK, ALPHA = 6, 6
SCENES, SEED = 800, 8
BATCH, STEPS, RATE = 16, 500, 4e-3
JUDGED = 64  # prompts
BLOCK = 4  # side in pixels of what the judge compares
# The weights that are judged, the style that the pictures should have, and the least share that must
# have it. The least shares are below what was measured, to notice a training that went wrong. The
# last one is low because neither LoRA was trained with the other.
RUNS = [({}, "", 0.9), ({"ink": 1}, "ink", 0.8), ({"sepia": 1}, "sepia", 0.9), ({"ink": 1, "sepia": 1}, "ink and sepia", 0.6)]
THINGS = 0.7  # the least share that must show the right thing
CALLED = 0.5  # share of captions with the trigger phrase
CONTOUR, DARK, LIGHT = 3, 0.2, 0.6  # of ink: pixels of a sprite, and the lightness that becomes black and white
PAPER, INK = np.array([250, 229, 190]), np.array([58, 32, 12])  # of sepia, RGB
# The blocks of the UNet that are changed. The blocks before them decide what a picture shows and
# where. Gradients go through the last blocks only, so a step takes less time.
BLOCKS = ("up_blocks.1.", "up_blocks.2.")
# The modules that kohya's networks.lora changes.
CHANGED = {"Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D"}


def ink(one, pictures):
    """Draws a scene in black ink on white paper: a thick contour, and only the darker tones."""
    drawn = [inked(styled(pictures[thing.concept], thing.style)) for thing in one.things]
    things = tuple(replace(thing, concept=i, style="") for i, thing in enumerate(one.things))
    return draw(replace(one, shade=tuple(BACKGROUNDS["white"]), things=things), drawn)


def inked(picture):
    """Returns a sprite as ink draws it."""
    values = np.asarray(picture).astype(np.float32)
    light = values[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32) / 255
    # Pixels outside the sprite count as transparent, so that a thing has a contour at its edge too.
    shape = ImageOps.expand(picture.getchannel("A"), CONTOUR).filter(ImageFilter.MinFilter(2 * CONTOUR + 1))
    inside = np.asarray(ImageOps.crop(shape, CONTOUR), np.float32) / 255
    tone = np.clip((light - DARK) / (LIGHT - DARK), 0, 1) * inside
    values[..., :3] = (20 + 235 * tone)[..., None]
    return Image.fromarray(values.astype(np.uint8))


def sepia(image):
    """Returns an image in shades of brown."""
    light = np.asarray(image.convert("L"), np.float32)[..., None] / 255
    return Image.fromarray((INK + (PAPER - INK) * light).round().astype(np.uint8))


# How to draw a scene in each style, and the style's trigger phrase.
STYLES = {
    "ink": (ink, "ink drawing"),
    "sepia": (lambda one, pictures: sepia(draw(one, pictures)), "sepia"),
}


def model():
    """Returns the parts of the small model."""
    vae = AutoencoderKL.from_pretrained(MODEL / "vae", dtype=torch.float32).eval()
    text = CLIPTextModel.from_pretrained(MODEL / "text_encoder", dtype=torch.float32).eval()
    unet = UNet2DConditionModel.from_pretrained(MODEL / "unet", dtype=torch.float32).eval()
    unet.to(memory_format=torch.channels_last)
    unet.set_attn_processor(AttnProcessor())
    for part in (vae, text, unet):
        part.requires_grad_(False)
    return vae, text, unet


class Lora(torch.nn.Module):
    """The factors for all changed layers of a UNet, which acts as if they were merged into it."""

    def __init__(self, unet):
        super().__init__()
        self.weight, self.factors = 1.0, torch.nn.ModuleDict()
        for block_name, block in unet.named_modules():
            if type(block).__name__ not in CHANGED or not block_name.startswith(BLOCKS):
                continue
            for name, layer in block.named_modules(prefix=block_name):
                key = "lora_unet_" + name.replace(".", "_")
                if isinstance(layer, torch.nn.Linear):
                    down = torch.nn.Linear(layer.in_features, RANK, bias=False)
                    up = torch.nn.Linear(RANK, layer.out_features, bias=False)
                elif isinstance(layer, torch.nn.Conv2d):
                    down = torch.nn.Conv2d(layer.in_channels, RANK, layer.kernel_size, layer.stride, layer.padding, bias=False)
                    up = torch.nn.Conv2d(RANK, layer.out_channels, 1, bias=False)
                else:
                    continue
                torch.nn.init.kaiming_uniform_(down.weight, a=5**0.5)
                torch.nn.init.zeros_(up.weight)
                self.factors[key] = torch.nn.ModuleDict({"lora_down": down, "lora_up": up})
                layer.register_forward_hook(lambda _, inputs, output, key=key: self.changed(key, inputs[0], output))

    def changed(self, key, x, y):
        if self.weight == 0:
            return y
        factors = self.factors[key]
        return y + self.weight * ALPHA / RANK * factors["lora_up"](factors["lora_down"](x))

    def write(self, name, trigger):
        """Writes the factors to a file in f16, with kohya's names and metadata."""
        tensors = {}
        for key, factors in self.factors.items():
            tensors[f"{key}.alpha"] = torch.tensor(ALPHA, dtype=torch.float16)
            for factor in ("lora_down", "lora_up"):
                tensors[f"{key}.{factor}.weight"] = factors[factor].weight.detach().half().contiguous()
        plain = save(tensors)
        (length,) = struct.unpack("<Q", plain[:8])
        header, data = json.loads(plain[8 : 8 + length]), plain[8 + length :]
        digest = hashlib.sha256(data).hexdigest()  # WebUI's hash of a LoRA
        metadata = {
            "ss_network_module": "networks.lora", "ss_network_dim": str(RANK), "ss_network_alpha": str(float(ALPHA)),
            "ss_network_args": json.dumps({"conv_dim": str(RANK), "conv_alpha": str(float(ALPHA))}),
            "ss_output_name": name, "ss_base_model_version": "sd_v1", "ss_v2": "False", "ss_seed": str(SEED), "ss_steps": str(STEPS),
            "ss_learning_rate": str(RATE), "ss_network_train_unet_only": "True",
            "modelspec.sai_model_spec": "1.0.0", "modelspec.architecture": "stable-diffusion-v1/lora",
            "modelspec.title": f"{name.capitalize()}, for the small emoji model", "modelspec.trigger_phrase": trigger,
            "modelspec.prediction_type": "v", "modelspec.resolution": "96x96",
            "sshs_model_hash": digest,
        }
        FOLDER.mkdir(exist_ok=True)
        path = FOLDER / f"{name}.safetensors"
        # `save` writes metadata in a random order, so the header is written here.
        text = json.dumps({"__metadata__": metadata, **header}, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        path.write_bytes(struct.pack("<Q", len(text)) + text + data)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB, {len(self.factors)} layers, hash {digest[:12]}", flush=True)

    def read(self, name):
        """Reads the factors from a file that `write` wrote."""
        tensors = load_file(FOLDER / f"{name}.safetensors")
        self.load_state_dict({f"factors.{key}": value.float() for key, value in tensors.items() if not key.endswith(".alpha")})


def encode(vae, images):
    """Returns the means of the latents of images, [images, 4, height / 8, width / 8]."""
    with torch.no_grad():
        batches = torch.stack([pixels(image) for image in images]).split(50)
        return torch.cat([vae.encode(batch).latent_dist.mean for batch in batches])


def train(name, parts):
    """Trains a style and writes its file."""
    started = time.process_time()
    vae, text, unet = parts
    drawn, trigger = STYLES[name]
    pictures, (new, _), tokenizer = sprites(), held_out(), load_tokenizer()
    all_scenes = [scene(np.random.default_rng([SEED, i]), new) for i in range(SCENES)]
    # A silhouette has no tones, and an outline is another drawing.
    all_scenes = [one for one in all_scenes if not any(thing.style in ("silhouette", "outline") for thing in one.things)]
    buckets = [[one for one in all_scenes if one.shape == shape] for shape in SHAPES]
    encoded = [encode(vae, [drawn(one, pictures) for one in bucket]) * vae.config.scaling_factor for bucket in buckets]
    shares = [len(bucket) / len(all_scenes) for bucket in buckets]
    print(f"{name}: {len(all_scenes)} scenes in {time.process_time() - started:.0f} s", flush=True)

    torch.manual_seed(SEED)
    lora = Lora(unet)
    optimizer = torch.optim.AdamW(lora.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.01)
    mean_loss = None
    for step in range(STEPS):
        rng = np.random.default_rng([9, step])
        torch.manual_seed(step)
        bucket = rng.choice(3, p=shares)
        chosen = rng.integers(len(buckets[bucket]), size=BATCH)
        captions = ["" if rng.random() < DROPPED else caption(rng, buckets[bucket][i]) for i in chosen]
        captions = [f"{one}, {trigger}" if one and rng.random() < CALLED else one for one in captions]
        with torch.no_grad():
            context = read(text, tokens(tokenizer, captions, rng))
        loss = loss_of(unet, encoded[bucket][chosen], context, "cpu", half=False)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lora.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 10, (STEPS - step) / (STEPS * 0.5))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        mean_loss = loss.item() if mean_loss is None else mean_loss + (loss.item() - mean_loss) / 50
        if step % 20 == 0:
            print(f"{name} {step}/{STEPS} loss {mean_loss:.4f} {time.process_time() - started:.0f} s", flush=True)
    lora.write(name, trigger)
    print(f"{name}: {(time.process_time() - started) / 60:.1f} CPU minutes", flush=True)


@torch.no_grad()
def generate(parts, prompts, seeds, guidance=7.5):
    """Draws prompts at 20 steps. Returns RGB images."""
    vae, text, unet = parts
    tokenizer, images = load_tokenizer(), []
    for start in range(0, len(prompts), 32):
        some = prompts[start : start + 32]
        context = read(text, tokens(tokenizer, some + [""] * len(some)))
        x = torch.stack([torch.randn(4, 12, 12, generator=torch.Generator().manual_seed(seed)) for seed in seeds[start : start + 32]])
        scheduler = DPMSolverMultistepScheduler(**NOISE, steps_offset=1, use_karras_sigmas=True)
        scheduler.set_timesteps(20)
        for t in scheduler.timesteps:
            v = unet(torch.cat([x, x]).to(memory_format=torch.channels_last), t, context).sample
            prompted, free = v.chunk(2)
            x = scheduler.step(free + guidance * (prompted - free), t, x).prev_sample
        decoded = (vae.decode(x / vae.config.scaling_factor).sample.clamp(-1, 1) * 127.5 + 127.5).round().byte()
        images += [Image.fromarray(image) for image in decoded.permute(0, 2, 3, 1).numpy()]
    return images


def seen_by_judge(image):
    """Returns the means of 4×4 pixels, which the judge compares."""
    return np.asarray(image.resize((image.width // BLOCK, image.height // BLOCK), Image.Resampling.BOX), np.float32)


def references(pictures):
    """Returns what the judge sees of all things on all backgrounds, plain and in each style.

    The renders are cut to the thing. The labels of each one are its style, thing and background.
    """
    labels, seen = [], []
    for concept in range(len(CONCEPTS)):
        for background in BACKGROUNDS:
            one = replace(single(np.random.default_rng(0), concept, background), shade=tuple(BACKGROUNDS[background]))
            thing = one.things[0]
            box = (thing.x, thing.y, thing.x + thing.side, thing.y + thing.side)
            renders = {"": draw(one, pictures), **{name: drawn(one, pictures) for name, (drawn, _) in STYLES.items()}}
            renders["ink and sepia"] = sepia(renders["ink"])
            for style, image in renders.items():
                labels.append((style, concept, background))
                seen.append(seen_by_judge(image.crop(box)))
    return np.array(labels), np.stack(seen)


def distances(image, position, seen):
    """Returns how far a picture is from each reference.

    Where the position is the middle, the training moved things by up to a cell, so the distance is
    the smallest one over these moves.
    """
    side = seen.shape[1] * BLOCK
    room = image.width - side
    across, down = ([room // 2 + CELL * i for i in (-1, 0, 1)] if at == 0.5 else [at * room] for at in POSITIONS[position])
    cuts = [seen_by_judge(image.crop((x, y, x + side, y + side))) for x in across for y in down]
    return np.min([np.square(seen - cut).mean((1, 2, 3)) for cut in cuts], axis=0)


def judge(parts):
    """Draws held-out prompts with the LoRAs, and prints how many show the right style and thing.

    The style is right if, of all renders of the prompt's thing on its background, the nearest one
    has this style. The thing is right if the nearest render in the style shows it. A guess would be
    right once in 4 and once in 176 times.
    """
    lines = [line.split("\t") for line in HELD_OUT.read_text().splitlines() if line.startswith("new\t")][:JUDGED]
    names = {concept.called[0]: concept.index for concept in CONCEPTS}
    labels, seen = references(sprites())
    loras = {name: Lora(parts[2]) for name in STYLES}
    for name, lora in loras.items():
        lora.read(name)
    print("| LoRAs | style | thing |\n|---|---|---|")
    for weights, style, least in RUNS:
        for name, lora in loras.items():
            lora.weight = weights.get(name, 0)
        images = generate(parts, [line[4] for line in lines], range(len(lines)))
        styles = things = 0
        for (_, thing, background, position, _), image in zip(lines, images):
            far, thing = distances(image, position, seen), str(names[thing])
            own = (labels[:, 1] == thing) & (labels[:, 2] == background)
            styles += labels[np.where(own, far, np.inf).argmin(), 0] == style
            things += labels[np.where(labels[:, 0] == style, far, np.inf).argmin(), 1] == thing
        named = " and ".join(f"{name} at {weight}" for name, weight in weights.items()) or "none"
        print(f"| {named} | {styles / len(lines):.1%} | {things / len(lines):.1%} |", flush=True)
        assert styles >= least * len(lines) and things >= THINGS * len(lines), named


if __name__ == "__main__":
    if sys.argv[1:] != ["--judge"]:
        for name in sys.argv[1:] or STYLES:
            train(name, model())
    if len(sys.argv) != 2 or sys.argv[1] == "--judge":
        judge(model())
