"""Trains the model and writes it in the diffusers layout.

The stages are the autoencoder, the latents, the text encoder with the UNet, the word weights and
the export. Each stage continues where it was stopped, from the files in run/.

    python train.py [OUT]
"""

import sys

import torch

import diffusion
import export
import vae
import weights
from checkpoint import RUN

if __name__ == "__main__":
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder, spent = vae.train(device)
    models, scaling, more = diffusion.train(encoder, device)
    models, last = weights.train(encoder, *models, scaling, device)
    export.write(sys.argv[1] if len(sys.argv) > 1 else RUN / "model", encoder, *models, scaling)
    print(f"autoencoder {spent / 60:.0f} minutes, diffusion {more / 60:.0f} minutes, weights {last / 60:.0f} minutes, on {device}")
