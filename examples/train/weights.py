"""Teaches the model the weights of words. It continues from the model of the other stages.

The weight of a background's colour is how far the background is from the average of all colours.

Until this stage no word has a weight, and the contents of a caption can be read from every state
after the word, even from the padding. One of 77 states more or less makes no difference then. So
the text encoder first learns to carry a background's colour in the state of its word and nowhere
else. Then the UNet, together with it, learns to read the colour there, and to draw another shade if
the word has another weight.
"""

import copy
from dataclasses import replace

import numpy as np
import torch

from checkpoint import Training
from concepts import sprites
from diffusion import BATCH, DROPPED, SCENES, latents, loss_of
from scenes import BACKGROUNDS, caption, draw
from text import SKIPPED, load_tokenizer, read, tokens
from vae import pixels

WORDS_STEPS = 800
ROUNDS = [1200, 800]  # steps; the learning rate falls to zero at the end of each round
WEIGHED = 0.5  # share of weighted captions, among those that name the background's colour once
WEIGHTS = (0.25, 1.75)
BATCH_OF_WORDS = 128
AVERAGE = np.mean(list(BACKGROUNDS.values()), axis=0)


def place_of(ids, word):
    """Returns the place of a word, or None unless it is there exactly once."""
    places = (ids == word).nonzero().flatten().tolist()
    return places[0] if len(places) == 1 else None


def weighed(scene, weight):
    """Returns the scene with its background `weight` times as far from the average colour."""
    shade = AVERAGE + weight * (np.array(scene.shade) - AVERAGE)
    return replace(scene, shade=tuple(int(c) for c in np.clip(shade.round(), 0, 255)))


def part(text, all_scenes, device):
    """Teaches the text encoder to carry the background's colour in its word, and nowhere after it.

    The state of the word becomes the state at the end of `blue background`, which the UNet knows.
    The states after it become their average over all colours.
    """
    tokenizer, known = load_tokenizer(), copy.deepcopy(text)
    words = {background: tokenizer(background).input_ids[1] for background in BACKGROUNDS}
    alone = tokens(tokenizer, [f"{background} background" for background in BACKGROUNDS]).to(device)
    training = Training("words", [text], [{"params": list(text.parameters()), "base": 1e-3, "weight_decay": 0.01}], 0.99)
    while training.step < WORDS_STEPS:
        step = training.step
        rng = np.random.default_rng([7, step])
        chosen = [all_scenes[i] for i in rng.integers(len(all_scenes), size=BATCH_OF_WORDS)]
        ids = tokens(tokenizer, [caption(rng, scene) for scene in chosen], rng)
        others, behind, places = ids.clone(), torch.zeros(ids.shape, dtype=torch.bool), {}
        for row, scene in enumerate(chosen):
            place = place_of(ids[row], words[scene.background])
            if place is not None:
                others[row, place] = int(rng.choice(list(words.values())))
                behind[row, place + 1 :] = True
                places[row] = place
        skip = 2 if rng.random() < 0.25 else 1
        with torch.no_grad():
            # The target has a random colour. The state that is nearest to all targets is their
            # average.
            target = torch.where(behind[..., None].to(device), read(known, others.to(device), skip), read(known, ids.to(device), skip))
            ends = dict(zip(BACKGROUNDS, read(known, alone, skip)[:, 3]))
            for row, place in places.items():
                target[row, place] = ends[chosen[row].background]
        error = (read(text, ids.to(device), skip) - target).square().mean(2)
        of_words = torch.stack([error[row, place] for row, place in places.items()]).mean()
        training.update(error.mean() + 0.2 * of_words, min(1, (step + 1) / 50, (WORDS_STEPS - step) / (WORDS_STEPS * 0.5)))
        if step % 50 == 0:
            print(f"words {step}/{WORDS_STEPS} error {error.mean().item():.4f}, of the words {of_words.item():.4f} {training.elapsed():.0f} s", flush=True)
    training.save()
    return training.averaged()[0], training.seconds


def train(vae, unet, text, scaling, device):
    """Trains the UNet and the text encoder.

    A token's state is multiplied by its weight, as in `Emphasis::Multiply` of sd-text. The default
    of sd-text also restores the mean, which one word changes by 1 %.
    """
    all_scenes, encoded, buckets, _ = latents(vae, device)
    pictures, tokenizer = sprites(), load_tokenizer()
    words = {background: tokenizer(background).input_ids[1] for background in BACKGROUNDS}
    text, spent = part(text, all_scenes, device)
    unet.train(), text.train()
    training = Training(
        "weights", [unet, text],
        [
            {"params": list(unet.parameters()), "base": 5e-4, "weight_decay": 0.01},
            {"params": list(text.parameters()), "base": 5e-5, "weight_decay": 0.01},
        ],
        0.998,
    )
    mean_loss, steps = None, sum(ROUNDS)
    while training.step < steps:
        step = training.step
        rng = np.random.default_rng([6, step])
        torch.manual_seed(1_000_000 + step)
        bucket = buckets[rng.choice(3, p=[len(b) / SCENES for b in buckets])]
        chosen = bucket[rng.integers(len(bucket), size=BATCH)]
        captions = ["" if rng.random() < DROPPED else caption(rng, all_scenes[i]) for i in chosen]
        ids = tokens(tokenizer, captions, rng)
        x, weights = torch.stack([encoded[i] for i in chosen]).float(), torch.ones(ids.shape)
        rows, images = [], []
        others, behind = ids.clone(), torch.zeros(ids.shape, dtype=torch.bool)
        for row, i in enumerate(chosen):
            scene = all_scenes[i]
            place = place_of(ids[row], words[scene.background])
            if place is None:
                continue
            others[row, place] = int(rng.choice(list(words.values())))
            behind[row, place + 1 :] = True
            if rng.random() < WEIGHED:
                weights[row, place] = weight = rng.uniform(*WEIGHTS)
                rows.append(row)
                images.append(pixels(draw(weighed(scene, weight), pictures)))
        if rows:
            with torch.no_grad(), torch.autocast(device, torch.bfloat16):
                x[rows] = vae.encode(torch.stack(images).to(device)).latent_dist.mean.float().cpu()
        with torch.autocast(device, torch.bfloat16):
            skip = 2 if rng.random() < SKIPPED else 1
            context = read(text, ids.to(device), skip)
            # What the states after the word still say is about another colour.
            context = torch.where(behind[..., None].to(device), read(text, others.to(device), skip), context)
        loss = loss_of(unet, x * scaling, context * weights[..., None].to(device), device)
        done, length = (step, ROUNDS[0]) if step < ROUNDS[0] else (step - ROUNDS[0], ROUNDS[1])
        training.update(loss, min(1, (done + 1) / 50, (length - done) / (length * 0.6)))
        mean_loss = loss.item() if mean_loss is None else mean_loss + (loss.item() - mean_loss) / 100
        if step % 100 == 0:
            print(f"weights {step}/{steps} loss {mean_loss:.4f} {training.elapsed():.0f} s", flush=True)
    training.save()
    return [model.eval() for model in training.averaged()], spent + training.seconds
