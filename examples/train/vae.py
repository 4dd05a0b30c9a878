"""Trains the autoencoder, an AutoencoderKL with 8×8 pixels to a latent and four channels."""

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D

from checkpoint import Training
from concepts import sprites
from scenes import CELL, SHAPES, draw, held_out, scene

# Steps on 64×64 crops, which are cheap and teach most of it, and then steps on whole pictures.
CROPS, WHOLE = 5000, 1200
KL = 1e-3
HALVED = 0.5  # weight of the loss of halved latents, which must decode to the halved picture


def build():
    model = AutoencoderKL(
        in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=96,
        mid_block_add_attention=False,
    )
    with torch.no_grad():
        # With little noise at first, and with blocks that begin as the identity, the model learns
        # several times as fast at the start.
        model.quant_conv.weight[4:] *= 0.1
        model.quant_conv.bias[4:] = -5
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
            # Most crops are around a thing, because there is little to learn from an empty corner.
            if one.things and rng.random() < 0.9:
                thing = one.things[rng.integers(len(one.things))]
                left, top = (at + thing.side / 2 + rng.normal() * thing.side / 3 - 32 for at in (thing.x, thing.y))
            else:
                left, top = rng.uniform(0, one.shape)
            left, top = (int(np.clip(at, 0, side - 64)) // CELL * CELL for at, side in zip((left, top), one.shape))
            image = image.crop((left, top, left + 64, top + 64))
        images.append(pixels(image))
    return torch.stack(images)


def difference(y, x):
    """Returns the sum of the L1 loss, the L2 loss and the L1 loss of the edges."""
    edges = sum((a - b).abs().mean() for a, b in zip(gradient(y), gradient(x)))
    return (y - x).abs().mean() + (y - x).square().mean() + edges


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
            z = posterior.sample()
            y, halved = model.decode(z).sample.float(), model.decode(F.avg_pool2d(z, 2)).sample.float()
        # Latents that can be halved like the picture are smooth, and a diffusion model learns
        # smooth latents soonest (arXiv 2502.14831).
        loss = difference(y, x) + HALVED * difference(halved, F.avg_pool2d(x, 2))
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        rate = min(1, (step + 1) / 100) * 0.5 * (1 + np.cos(np.pi * step / total))
        training.update(loss + KL * divergence, rate)
        if step % 50 == 0:
            error = (y - x).square().mean().item()
            print(
                f"vae {step}/{total} PSNR {-10 * np.log10(error / 4):.1f} loss {loss.item():.4f} KL {divergence.item():.2f} "
                f"{training.elapsed():.0f} s", flush=True,
            )
    training.save()
    return training.averaged()[0].eval(), training.seconds
