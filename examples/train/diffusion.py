"""Trains the UNet, and the text encoder with it, on the latents of rendered scenes."""

import os

import numpy as np
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image

import text as text_stage
from checkpoint import RUN, Training
from concepts import sprites
from scenes import SHAPES, caption, draw, scenes
from text import SKIPPED, read, tokens
from vae import pixels

SCENES, SEED = 32_000, 3  # each picture is used more than a dozen times, with new captions
BATCH = 64
STEPS = 11_000
DECAY = 0.3  # share of the steps, at the end, in which the learning rate falls to zero
DROPPED = 0.1  # share of empty captions, so that guidance has something to guide away from
NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "v_prediction"}
ALPHAS = DDPMScheduler(**NOISE).alphas_cumprod
SHEET = [
    "a fox", "a fox on a blue background", "a small fox in the top left corner on yellow", "a cat on white", "strawberry on white",
    "small rocket on a blue background", "a banana on black", "a pizza", "two owls", "three balloons on pink", "a fox and an apple",
    "blue dragon on orange", "a tree silhouette on red", "an upside down car on green", "a big penguin", "a guitar on the left on purple",
    "a cute fox girl, watercolour", "an owl wearing a top hat", "green background", "a castle at the bottom on gray",
]


def build_unet():
    return UNet2DConditionModel(
        sample_size=12, in_channels=4, out_channels=4, block_out_channels=(64, 112, 144), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64, attention_head_dim=4, norm_num_groups=16,
    )


def latents(vae, device):
    """Returns all scenes, their latents, the indices for each shape, and the scaling factor.

    The latents are made once, in pieces that are kept in files.
    """
    all_scenes, pictures, piece = scenes(SCENES, SEED), sprites(), 2000
    encoded = [None] * SCENES
    for start in range(0, SCENES, piece):
        file = RUN / f"latents-{start}.npz"
        places = {shape: [i for i in range(start, start + piece) if all_scenes[i].shape == shape] for shape in SHAPES}
        if not file.exists():
            found = {}
            for shape, indices in places.items():
                rows = []
                for first in range(0, len(indices), 50):
                    x = torch.stack([pixels(draw(all_scenes[i], pictures)) for i in indices[first : first + 50]])
                    with torch.no_grad(), torch.autocast(device, torch.bfloat16):
                        rows.append(vae.encode(x.to(device)).latent_dist.mean.float().cpu().numpy().astype(np.float16))
                found["x".join(map(str, shape))] = np.concatenate(rows)
            part = RUN / "latents.part.npz"
            np.savez(part, **found)
            os.replace(part, file)
            print(f"latents {start + piece}/{SCENES}", flush=True)
        with np.load(file) as found:
            for shape, indices in places.items():
                for i, row in zip(indices, found["x".join(map(str, shape))]):
                    encoded[i] = torch.from_numpy(row)
    buckets = [np.array([i for i, one in enumerate(all_scenes) if one.shape == shape]) for shape in SHAPES]
    deviation = torch.cat([row.flatten() for row in encoded]).float().std().item()
    return all_scenes, encoded, buckets, round(1 / deviation, 5)


def loss_of(unet, x, context, device, half=True):
    """Returns the loss of latents [B, 4, H, W] with prompts [B, 77, 64] at random timesteps.

    With `half`, the UNet computes in bf16, which is slow on a processor without bf16.
    """
    # Small timesteps are drawn less often, because little is decided there.
    t = (1000 * torch.rand(len(x)) ** 0.75).long()
    a = ALPHAS[t][:, None, None, None]
    noise = torch.randn_like(x)
    noisy, target = a.sqrt() * x + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * x
    # Weights the v loss by min-SNR (arXiv 2303.09556) with gamma 5.
    weight = (5 * (1 - a) / a).clamp(max=1)
    if device == "cpu":
        noisy = noisy.to(memory_format=torch.channels_last)
    with torch.autocast(device, torch.bfloat16, enabled=half):
        v = unet(noisy.to(device), t.to(device), context).sample
    return (weight.to(device) * (v.float() - target.to(device)).square()).mean()


def train(vae, device):
    all_scenes, encoded, buckets, scaling = latents(vae, device)
    print(f"scaling factor {scaling}", flush=True)
    torch.manual_seed(2)
    text, spent = text_stage.train(all_scenes, device)
    unet = build_unet().to(device)
    if device == "cpu":
        unet.to(memory_format=torch.channels_last)
        # The backward pass of plain attention is several times as fast on a CPU.
        unet.set_attn_processor(AttnProcessor())
    training = Training(
        "diffusion", [unet, text],
        [
            {"params": list(unet.parameters()), "base": 1e-3, "weight_decay": 0.01},
            {"params": list(text.parameters()), "base": 1e-4, "weight_decay": 0.01},
        ],
        0.9995,
    )
    tokenizer = text_stage.load_tokenizer()
    mean_loss = None
    while training.step < STEPS:
        step = training.step
        rng = np.random.default_rng([4, step])
        torch.manual_seed(step)
        bucket = buckets[rng.choice(3, p=[len(b) / SCENES for b in buckets])]
        chosen = bucket[rng.integers(len(bucket), size=BATCH)]
        x = torch.stack([encoded[i] for i in chosen]).float() * scaling
        captions = ["" if rng.random() < DROPPED else caption(rng, all_scenes[i]) for i in chosen]
        ids = tokens(tokenizer, captions, rng)
        with torch.autocast(device, torch.bfloat16):
            context = read(text, ids.to(device), 2 if rng.random() < SKIPPED else 1)
        loss = loss_of(unet, x, context, device)
        rate = min(1, (step + 1) / 200, (STEPS - step) / (STEPS * DECAY))
        training.update(loss, rate)
        mean_loss = loss.item() if mean_loss is None else mean_loss + (loss.item() - mean_loss) / 100
        if step % 100 == 0:
            print(f"diffusion {step}/{STEPS} loss {mean_loss:.4f} {training.elapsed():.0f} s", flush=True)
        if training.step % 2000 == 0:
            draw_sheet(training, vae, tokenizer, scaling, device)
    training.save()
    return [model.eval() for model in training.averaged()], scaling, spent + training.seconds


@torch.no_grad()
def draw_sheet(training, vae, tokenizer, scaling, device):
    """Draws a sheet of prompts with the averaged weights, for inspection."""
    unet, text = training.models
    trained = {key: value.detach().clone() for key, value in training.weights().items()}
    training.averaged()
    scheduler = DPMSolverMultistepScheduler(**NOISE, steps_offset=1, use_karras_sigmas=True)
    scheduler.set_timesteps(20)
    context = read(text, tokens(tokenizer, SHEET + [""] * len(SHEET)).to(device))
    x = torch.randn(len(SHEET), 4, 12, 12, generator=torch.Generator().manual_seed(1)).to(device)
    for t in scheduler.timesteps:
        prompted, free = unet(torch.cat([x, x]), t, context).sample.chunk(2)
        x = scheduler.step(free + 7.5 * (prompted - free), t, x).prev_sample
    images = (vae.decode(x / scaling).sample.clamp(-1, 1) * 127.5 + 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    sheet = Image.new("RGB", (5 * 100, 4 * 100))
    for i, image in enumerate(images):
        sheet.paste(Image.fromarray(image), (i % 5 * 100, i // 5 * 100))
    sheet.save(RUN / f"sheet-{training.step}.png")
    for key, value in training.weights().items():
        value.data.copy_(trained[key])
