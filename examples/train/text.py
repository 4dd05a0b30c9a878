"""The text encoder: CLIP's text model, first taught alone to tell what is in a caption, which is much cheaper than a UNet's steps."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from checkpoint import Training
from concepts import HERE, sprites
from scenes import BACKGROUNDS, CONCEPTS, POSITIONS, SIZES, TINTS, caption

TOKENIZER = HERE.parent / "models/emoji/tokenizer"
STEPS, BATCH = 800, 128
STRANGE = 0.12  # of the captions get some tokens that mean nothing, so that unknown words do no harm
SKIPPED = 0.1  # of the batches read the layer of clip skip 2
LOOKS = 4  # a thing's looks: its picture at 4×4, colours and what covers the background
STYLES = ["", "silhouette", "outline", "upside down", *TINTS]
CHOICES = [len(BACKGROUNDS), len(POSITIONS), len(SIZES), len(STYLES), 4]  # of which a scene has one each


def build():
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408, hidden_size=64, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4, projection_dim=64,
            bos_token_id=49406, eos_token_id=49407, pad_token_id=49407,
        )
    )


def load_tokenizer():
    return CLIPTokenizer.from_pretrained(TOKENIZER)


def tokens(tokenizer, captions, rng=None):
    """Ids of 77 tokens each; with `rng` some get tokens that mean nothing."""
    ids = tokenizer(captions, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
    for row in ids if rng is not None else []:
        if rng.random() < STRANGE:
            end = (row == 49407).nonzero()[0].item()
            words = row[1:end].tolist()
            for _ in range(rng.integers(1, 4)):
                words.insert(rng.integers(len(words) + 1), int(rng.integers(49406)))
            words = words[:75]
            row[1 : 1 + len(words)] = torch.tensor(words)
    return ids


def read(model, ids, skip=1):
    """The prompt's embeddings at a clip skip."""
    states = model(ids, output_hidden_states=True).hidden_states
    return model.final_layer_norm(states[-skip])


def contents(scene):
    """What a caption can name: which things, and the number of each choice."""
    things = torch.zeros(len(CONCEPTS))
    for thing in scene.things:
        things[thing.concept] = 1
    style = scene.things[0].style if scene.things else ""
    choices = (
        list(BACKGROUNDS).index(scene.background), list(POSITIONS).index(scene.position), list(SIZES).index(scene.size),
        STYLES.index(style), len(scene.things),
    )
    return things, torch.tensor(choices)


def looks():
    """[things, 4 · 4 · 4]: the mean colours of the pictures' parts, times how much is covered, and that."""
    small = [np.asarray(picture.convert("RGBa").resize((LOOKS, LOOKS), Image.Resampling.BOX), np.float32) for picture in sprites()]
    small = np.stack(small).reshape(len(small), -1) / 127.5
    return torch.from_numpy(small - small.mean(0))


def train(all_scenes, device):
    torch.manual_seed(3)
    model = build().to(device)
    if device == "cpu":
        model.set_attn_implementation("eager")  # whose backward pass is several times as fast there
    head = torch.nn.Linear(64, len(CONCEPTS) + sum(CHOICES) + 4 * LOOKS**2).to(device)  # needed here only
    models = [model, head]
    training = Training("text", models, [{"params": [p for m in models for p in m.parameters()], "base": 2e-3, "weight_decay": 0.01}], 0.99)
    tokenizer, shown = load_tokenizer(), looks()
    while training.step < STEPS:
        step = training.step
        rng = np.random.default_rng([5, step])
        chosen = [all_scenes[i] for i in rng.integers(len(all_scenes), size=BATCH)]
        ids = tokens(tokenizer, [caption(rng, scene) for scene in chosen], rng)
        things, choices = map(torch.stack, zip(*map(contents, chosen)))
        # Told at the end of the prompt or anywhere after it: a UNet looks at all of it.
        end = (ids == 49407).int().argmax(1)
        place = end + (torch.from_numpy(rng.random(BATCH)) * (77 - end)).long()
        with torch.autocast(device, torch.bfloat16):
            hidden = read(model, ids.to(device), 2 if rng.random() < SKIPPED else 1)
        told = head(hidden[torch.arange(BATCH), place].float()).split([len(CONCEPTS), *CHOICES, 4 * LOOKS**2], dim=1)
        # The few things that are there weigh as much as the many that are not.
        loss = 10 * F.binary_cross_entropy_with_logits(told[0], things.to(device), pos_weight=torch.tensor(20.0, device=device))
        loss = loss + sum(F.cross_entropy(logits, choices[:, i].to(device)) for i, logits in enumerate(told[1:-1]))
        # Embeddings from which the looks of things can be read spare the UNet to learn them thing by thing.
        seen = (told[-1] - (things @ shown).to(device)).square().mean()
        loss = loss + 20 * seen
        training.update(loss, min(1, (step + 1) / 50, (STEPS - step) / (STEPS * 0.3)))
        if step % 50 == 0:
            right = things[torch.arange(BATCH), told[0].argmax(1).cpu()].mean()
            print(f"text {step}/{STEPS} loss {loss.item():.3f} things {right:.0%} looks {seen.item():.4f} of {(things @ shown).square().mean():.4f} {training.elapsed():.0f} s", flush=True)
    training.save()
    return training.averaged()[0], training.seconds
