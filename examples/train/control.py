"""Trains a ControlNet for the small model that ships: it makes pictures follow given edges.

The control picture shows edges in white on black, as `cv2.Canny(gray, 100, 200)` finds them. The
UNet and the text encoder stay as they are.

    python control.py            # trains, continues where it was stopped, then judges
    python control.py --judge    # judges the files that are there
    python control.py --picture  # writes the edges of a big cat, an input for trying it
"""

import sys
import time

import cv2
import numpy as np
import torch
from diffusers import ControlNetModel
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image

from checkpoint import RUN, Training
from concepts import HERE, sprites
from diffusion import loss_of
from lora import JUDGED, MODEL, distances, encode, generate, model, references
from scenes import CONCEPTS, HELD_OUT, SHAPES, caption, draw, held_out, scene, single
from text import SKIPPED, load_tokenizer, read, tokens
from vae import pixels

FOLDER = MODEL / "controlnets/edges"
PICTURE = HERE.parent / "pictures/edges-cat.png"
# The thresholds of most ControlNets for Canny's edges. At 96×96 pixels they mark 5 % of the pixels.
LOW, HIGH = 100, 200
EMBEDDING = (16, 32, 64, 96)  # channels between the control picture and the latents
SCENES, SEED = 12_000, 10
BATCH, STEPS, RATE = 32, 2000, 1e-3
DECAY = 0.5  # share of the steps, at the end, in which the learning rate falls to zero
DROPPED = 0.2  # share of empty captions, which teach the control network to follow edges alone
DRAWN = 500  # steps between two sheets
HALF = True  # computes in bf16, which is slow on a processor without bf16
WEIGHTS, GUIDANCE = (0, 0.5, 1, 1.5), (7.5, 3)  # that are judged
# How much better pictures must agree with the edges at weight 1 than at weight 0, and the least share
# that must show the right thing. Both are below what was measured, to notice a training that went wrong.
GAIN, THINGS = 0.05, 0.9


def edges(image):
    """Returns the edges of an RGB image, 255 on an edge and 0 elsewhere, [height, width]."""
    return cv2.Canny(cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2GRAY), LOW, HIGH)


def control_pictures(maps):
    """Returns maps of edges as a control network takes them, [maps, 3, height, width] in 0..1."""
    return torch.from_numpy(np.stack(maps)).float().div(255)[:, None].repeat(1, 3, 1, 1)


class Controlled:
    """A UNet with a control network, which is called like the UNet alone."""

    def __init__(self, unet, control):
        self.unet, self.control, self.weight, self.pictures = unet, control, 1.0, None

    def __call__(self, x, t, context):
        if self.weight == 0:
            return self.unet(x, t, context)
        # With guidance, each picture is there twice.
        pictures = self.pictures.repeat(len(x) // len(self.pictures), 1, 1, 1).to(memory_format=torch.channels_last)
        down, middle = self.control(x, t, context, pictures, conditioning_scale=self.weight, return_dict=False)
        return self.unet(x, t, context, down_block_additional_residuals=down, mid_block_additional_residual=middle)


def prepared(control):
    control.to(memory_format=torch.channels_last)
    control.set_attn_processor(AttnProcessor())
    return control


def train(parts):
    """Trains the control network and writes its folder."""
    started = time.monotonic()
    vae, text, unet = parts
    torch.manual_seed(SEED)
    control = prepared(ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=EMBEDDING))
    training = Training("control", [control], [{"params": list(control.parameters()), "base": RATE, "weight_decay": 0.01}], 0.998)
    controlled = Controlled(unet, control)
    pictures, (new, _), tokenizer = sprites(), held_out(), load_tokenizer()
    all_scenes = [scene(np.random.default_rng([SEED, i]), new) for i in range(SCENES)]
    buckets = [[one for one in all_scenes if one.shape == shape] for shape in SHAPES]
    encoded, maps = [], []
    for bucket in buckets:
        latents, found = [], []
        for start in range(0, len(bucket), 500):
            images = [draw(one, pictures) for one in bucket[start : start + 500]]
            with torch.autocast("cpu", torch.bfloat16, enabled=HALF):
                latents.append(encode(vae, images).float() * vae.config.scaling_factor)
            found += [edges(image) for image in images]
        encoded.append(torch.cat(latents))
        maps.append(np.stack(found))
    shares = [len(bucket) / SCENES for bucket in buckets]
    print(f"{SCENES} scenes in {time.monotonic() - started:.0f} s", flush=True)
    test = Test(pictures)
    training.since = time.monotonic()

    mean_loss = None
    while training.step < STEPS:
        step = training.step
        rng = np.random.default_rng([11, step])
        torch.manual_seed(step)
        bucket = rng.choice(3, p=shares)
        chosen = rng.integers(len(buckets[bucket]), size=BATCH)
        captions = ["" if rng.random() < DROPPED else caption(rng, buckets[bucket][i]) for i in chosen]
        with torch.no_grad():
            context = read(text, tokens(tokenizer, captions, rng), 2 if rng.random() < SKIPPED else 1)
        controlled.pictures = control_pictures(maps[bucket][chosen])
        loss = loss_of(controlled, encoded[bucket][chosen], context, "cpu", half=HALF)
        training.update(loss, min(1, (step + 1) / 50, (STEPS - step) / (STEPS * DECAY)))
        mean_loss = loss.item() if mean_loss is None else mean_loss + (loss.item() - mean_loss) / 100
        if step % 50 == 0:
            print(f"control {step}/{STEPS} loss {mean_loss:.4f} {training.elapsed():.0f} s", flush=True)
        if training.step % DRAWN == 0:
            test.sheet(parts, training)
    training.save()
    training.averaged()[0].half().save_pretrained(FOLDER)
    size = (FOLDER / "diffusion_pytorch_model.safetensors").stat().st_size
    print(f"{size / 1e6:.1f} MB, {training.seconds / 60:.1f} minutes", flush=True)


class Test:
    """The new prompts of the evaluation, and the edges of true renders of them."""

    def __init__(self, pictures):
        lines = [line.split("\t") for line in HELD_OUT.read_text().splitlines() if line.startswith("new\t")][:JUDGED]
        names = {concept.called[0]: concept.index for concept in CONCEPTS}
        self.prompts = [line[4] for line in lines]
        self.things, self.backgrounds, self.positions = [names[line[1]] for line in lines], [line[2] for line in lines], [line[3] for line in lines]
        self.scenes = [single(np.random.default_rng([12, i]), *key) for i, key in enumerate(zip(self.things, self.backgrounds, self.positions))]
        self.images = [draw(one, pictures) for one in self.scenes]
        self.maps = [edges(image) for image in self.images]

    def draw(self, parts, controlled, prompts, guidance=7.5):
        """Draws a prompt with each of the first maps of edges."""
        images = []
        for start in range(0, len(prompts), 32):
            places = range(start, min(start + 32, len(prompts)))
            controlled.pictures = control_pictures([self.maps[i] for i in places])
            images += generate((*parts[:2], controlled), [prompts[i] for i in places], places, guidance)
        return images

    def sheet(self, parts, training):
        """Draws a sheet with the averaged weights, for inspection.

        Its rows are edges, their prompts, prompts of other things on other backgrounds, and empty prompts.
        """
        count = 10
        trained = {key: value.detach().clone() for key, value in training.weights().items()}
        controlled = Controlled(parts[2], training.averaged()[0])
        things = [CONCEPTS[self.things[-1 - i]].called[0] for i in range(count)]
        backgrounds = [self.backgrounds[-1 - i] for i in range(count)]
        rows = [[Image.fromarray(one) for one in self.maps[:count]]]
        for prompts in (self.prompts[:count], [f"a {thing} on {background}" for thing, background in zip(things, backgrounds)], [""] * count):
            rows.append(self.draw(parts, controlled, prompts))
            print(f"agreement {agreement(rows[-1], self.maps[:count]):.3f}", flush=True)
        sheet = Image.new("RGB", (count * 98, len(rows) * 98), (128, 0, 0))
        for y, row in enumerate(rows):
            for x, image in enumerate(row):
                sheet.paste(image, (x * 98, y * 98))
        sheet.save(RUN / f"control-{training.step}.png")
        for key, value in training.weights().items():
            value.data.copy_(trained[key])


def agreement(images, maps):
    """Returns how well the edges of images agree with maps of edges: F1 within one pixel.

    The precision is the share of the images' edges that have an edge of the map at most one pixel
    away. The recall is the same with images and maps exchanged.
    """
    near = lambda one: cv2.dilate(one, np.ones((3, 3), np.uint8))
    found = [edges(image) for image in images]
    share = lambda these, those: sum(((a > 0) & (near(b) > 0)).sum() for a, b in zip(these, those, strict=True)) / max(1, sum((a > 0).sum() for a in these))
    precision, recall = share(found, maps), share(maps, found)
    return 2 * precision * recall / max(1e-9, precision + recall)


@torch.no_grad()
def judge(parts):
    """Draws held-out prompts with the edges of true renders, and prints how well pictures follow both.

    The thing is right if, of the plain renders of all 176 things on all backgrounds, the nearest
    one shows the thing of the prompt.
    """
    test = Test(sprites())
    labels, seen = references(sprites())
    plain = labels[:, 0] == ""
    labels, seen = labels[plain], seen[plain]
    control = prepared(ControlNetModel.from_pretrained(FOLDER, dtype=torch.float32).eval())
    controlled = Controlled(parts[2], control)

    def row(name, images, things=test.things):
        """Prints and returns the agreement with the edges, and the share of right things."""
        nearest = [distances(image, position, seen).argmin() for image, position in zip(images, test.positions)]
        right = np.mean([int(labels[i, 1]) == thing for i, thing in zip(nearest, things)])
        agrees = agreement(images, test.maps)
        print(f"| {name} | {agrees:.1%} | {right:.1%} |", flush=True)
        return agrees, right

    print("| pictures | edges | thing |\n|---|---|---|")
    row("true renders", test.images)
    row("true renders through the autoencoder", [autoencoded(parts[0], image) for image in test.images])
    results = {}
    for guidance in GUIDANCE:
        for weight in WEIGHTS:
            controlled.weight = weight
            images = test.draw(parts, controlled, test.prompts, guidance)
            results[guidance, weight] = row(f"guidance {guidance}, weight {weight}", images)
    controlled.weight = 1
    row("weight 1, empty prompts", test.draw(parts, controlled, [""] * len(test.prompts)))
    others = test.things[1:] + test.things[:1]
    prompts = [f"a {CONCEPTS[thing].called[0]} on {background}" for thing, background in zip(others, test.backgrounds)]
    row("weight 1, prompts of other things", test.draw(parts, controlled, prompts), others)
    for guidance in GUIDANCE:
        alone, followed = results[guidance, 0], results[guidance, 1]
        assert followed[0] >= alone[0] + GAIN and followed[1] >= THINGS, results


def autoencoded(vae, image):
    """Returns an image after the autoencoder has encoded and decoded it."""
    decoded = (vae.decode(encode(vae, [image])).sample[0].clamp(-1, 1) * 127.5 + 127.5).round().byte()
    return Image.fromarray(decoded.permute(1, 2, 0).numpy())


if __name__ == "__main__":
    if sys.argv[1:] == ["--picture"]:
        cat = next(concept.index for concept in CONCEPTS if concept.called[0] == "cat")
        drawn = draw(single(np.random.default_rng(1), cat, "green", size="big"), sprites())
        Image.fromarray(edges(drawn)).convert("RGB").save(PICTURE)
        sys.exit()
    if sys.argv[1:] != ["--judge"]:
        train(model())
    judge(model())
