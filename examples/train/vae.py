"""The autoencoder: AutoencoderKL, 8 pixels of each side to one of eight-channel latents."""

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D

from checkpoint import Training
from concepts import sprites
from scenes import SHAPES, draw, held_out, scene

CROPS, WHOLE = 6000, 1500  # steps on crops of 64×64 (most of what is to be learned, cheaply), then on whole pictures
KL = 1e-3


def build():
    model = AutoencoderKL(
        in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96), layers_per_block=1, latent_channels=8, norm_num_groups=4, sample_size=128,
        mid_block_add_attention=False,
    )
    with torch.no_grad():
        # Small noise at first, and blocks that begin as nothing: it learns several times as fast at the start.
        model.quant_conv.weight[8:] *= 0.1
        model.quant_conv.bias[8:] = -5
        for module in model.modules():
            if isinstance(module, ResnetBlock2D):
                module.conv2.weight.zero_()
    return model


def pixels(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def batch(step, pictures, new):
    rng = np.random.default_rng([2, step])
    crops = step < CROPS
    shape = None if crops else SHAPES[rng.choice(3, p=[0.7, 0.15, 0.15])]
    images = []
    while len(images) < (16 if crops else 6):
        one = scene(rng, new)
        if shape and one.shape != shape:
            continue
        image = draw(one, pictures)
        if crops:
            # Around a thing, mostly: there is little to learn from an empty corner.
            if one.things and rng.random() < 0.9:
                thing = one.things[rng.integers(len(one.things))]
                left, top = (at + thing.side / 2 + rng.normal() * thing.side / 3 - 32 for at in (thing.x, thing.y))
            else:
                left, top = rng.uniform(0, 128, 2)
            left, top = int(np.clip(left, 0, one.shape[0] - 64)), int(np.clip(top, 0, one.shape[1] - 64))
            image = image.crop((left, top, left + 64, top + 64))
        images.append(pixels(image))
    return torch.stack(images)


def gradient(x):
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def train(device):
    torch.manual_seed(1)
    model = build().to(device)
    training = Training("vae", [model], [{"params": list(model.parameters()), "base": 6e-4, "weight_decay": 0.0}], 0.998)
    pictures, (new, _), total = sprites(), held_out(), CROPS + WHOLE
    while training.step < total:
        step = training.step
        torch.manual_seed(step)
        x = batch(step, pictures, new).to(device)
        with torch.autocast(device, torch.bfloat16):
            posterior = model.encode(x).latent_dist
            y = model.decode(posterior.sample()).sample
        y = y.float()
        pixel = (y - x).abs().mean() + (y - x).square().mean()
        edges = sum((a - b).abs().mean() for a, b in zip(gradient(y), gradient(x)))
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        rate = min(1, (step + 1) / 100) * 0.5 * (1 + np.cos(np.pi * step / total))
        training.update(pixel + edges + KL * divergence, rate)
        if step % 50 == 0:
            error = (y - x).square().mean().item()
            print(
                f"vae {step}/{total} PSNR {-10 * np.log10(error / 4):.1f} edges {edges.item():.4f} KL {divergence.item():.2f} "
                f"{training.elapsed():.0f} s", flush=True,
            )
    training.save()
    return training.averaged()[0].eval(), training.seconds
