"""Trains the text encoder, which is CLIP's text model.

It first learns alone to recognise the contents of captions. This is much cheaper than learning it
in the steps of the UNet.
"""

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
STRANGE = 0.12  # share of captions with meaningless tokens, so that unknown words do no harm
SKIPPED = 0.1  # share of batches that use the layer of clip skip 2
LOOKS = 4  # side of the picture that stands for a thing's looks: its colours and its alpha
STYLES = ["", "silhouette", "outline", "upside down", *TINTS]
CHOICES = [len(BACKGROUNDS), len(POSITIONS), len(SIZES), len(STYLES), 4]  # a scene has one of each


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
    """Returns 77 ids for each caption. With `rng`, some captions get meaningless tokens."""
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
    """Returns the embeddings of prompts at a clip skip."""
    states = model(ids, output_hidden_states=True).hidden_states
    return model.final_layer_norm(states[-skip])


def contents(scene):
    """Returns what a caption can name: a flag for each thing, and the index of each choice."""
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
    """Returns the looks of things, [things, 4 · 4 · 4]: premultiplied mean colours and alpha.

    Each value is relative to the mean over all things.
    """
    small = [np.asarray(picture.convert("RGBa").resize((LOOKS, LOOKS), Image.Resampling.BOX), np.float32) for picture in sprites()]
    small = np.stack(small).reshape(len(small), -1) / 127.5
    return torch.from_numpy(small - small.mean(0))


def train(all_scenes, device):
    torch.manual_seed(3)
    model = build().to(device)
    if device == "cpu":
        # The backward pass of eager attention is several times as fast on a CPU.
        model.set_attn_implementation("eager")
    # The head is used in this stage only.
    head = torch.nn.Linear(64, len(CONCEPTS) + sum(CHOICES) + 4 * LOOKS**2).to(device)
    models = [model, head]
    training = Training("text", models, [{"params": [p for m in models for p in m.parameters()], "base": 2e-3, "weight_decay": 0.01}], 0.99)
    tokenizer, shown = load_tokenizer(), looks()
    while training.step < STEPS:
        step = training.step
        rng = np.random.default_rng([5, step])
        chosen = [all_scenes[i] for i in rng.integers(len(all_scenes), size=BATCH)]
        ids = tokens(tokenizer, [caption(rng, scene) for scene in chosen], rng)
        things, choices = map(torch.stack, zip(*map(contents, chosen)))
        # Reads a state at or after the end of the prompt, because a UNet uses all states.
        end = (ids == 49407).int().argmax(1)
        place = end + (torch.from_numpy(rng.random(BATCH)) * (77 - end)).long()
        with torch.autocast(device, torch.bfloat16):
            hidden = read(model, ids.to(device), 2 if rng.random() < SKIPPED else 1)
        told = head(hidden[torch.arange(BATCH), place].float()).split([len(CONCEPTS), *CHOICES, 4 * LOOKS**2], dim=1)
        # The few things in a caption count as much as the many others.
        loss = 10 * F.binary_cross_entropy_with_logits(told[0], things.to(device), pos_weight=torch.tensor(20.0, device=device))
        loss = loss + sum(F.cross_entropy(logits, choices[:, i].to(device)) for i, logits in enumerate(told[1:-1]))
        # With embeddings that contain the looks of things, the UNet need not learn these.
        seen = (told[-1] - (things @ shown).to(device)).square().mean()
        loss = loss + 20 * seen
        training.update(loss, min(1, (step + 1) / 50, (STEPS - step) / (STEPS * 0.3)))
        if step % 50 == 0:
            right = things[torch.arange(BATCH), told[0].argmax(1).cpu()].mean()
            print(f"text {step}/{STEPS} loss {loss.item():.3f} things {right:.0%} looks {seen.item():.4f} of {(things @ shown).square().mean():.4f} {training.elapsed():.0f} s", flush=True)
    training.save()
    return training.averaged()[0], training.seconds
