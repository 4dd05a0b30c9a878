"""Prints the floating-point operations in one call of each network of a model, as JSON.

    python flops.py MODEL LATENTS

torch counts the matrix products and the convolutions without running them.
"""

import json
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

import inputs


def main():
    model, latents = Path(sys.argv[1]), sys.argv[2]
    torch.set_grad_enabled(False)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(inputs.config(model, "unet"))
        vae = AutoencoderKL.from_config(inputs.config(model, "vae"))
    given = {
        name: torch.from_numpy(array).to("meta")
        for name, array in inputs.unet_inputs(model, latents).items()
    }
    sample, timestep, text = (
        given.pop(name) for name in ("sample", "timestep", "encoder_hidden_states")
    )
    print(
        json.dumps(
            {
                "unet": counted(lambda: unet(sample, timestep, text, added_cond_kwargs=given)),
                "vae-decoder": counted(
                    lambda: vae.decode(
                        torch.from_numpy(inputs.vae_input(model, latents)).to("meta")
                    )
                ),
            }
        )
    )


def counted(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


if __name__ == "__main__":
    main()
