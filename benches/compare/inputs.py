"""The inputs of every engine. They equal the inputs that `stage` computes for itself."""

import json

import numpy

TOKENS = 77  # a CLIP window
TIMESTEP = 500.0
PROMPT = "a cute fox girl, watercolour"
NEGATIVE = "blurry, low quality"
STEPS, GUIDANCE, SEED = 20, 7.5, 42


def config(model, part):
    return json.loads((model / part / "config.json").read_text())


def sides(latents):
    """Returns the height and the width of the latents."""
    width, height = map(int, latents.split("x"))
    return height, width


def ripple(channels, height, width):
    """Returns values of about unit size, without a pattern that could favour a network."""
    c, y, x = numpy.indices((channels, height, width))
    angle = (c * 4099 + y * 67 + x * 3).astype(numpy.float32) * numpy.float32(0.37)
    return (numpy.float32(1.4) * numpy.sin(angle))[None]


def unet_inputs(model, latents):
    """Returns the UNet's inputs by name, as float32 arrays."""
    unet = config(model, "unet")
    height, width = sides(latents)
    i, j = numpy.indices((TOKENS, unet["cross_attention_dim"]))
    inputs = dict(
        sample=ripple(unet["in_channels"], height, width),
        timestep=numpy.array(TIMESTEP, dtype=numpy.float32),
        encoder_hidden_states=numpy.sin((7 * i + j).astype(numpy.float32))[None],
    )
    if unet.get("addition_embed_type") == "text_time":
        text = unet["projection_class_embeddings_input_dim"] - 6 * unet["addition_time_embed_dim"]
        size = [8 * height, 8 * width]
        inputs |= dict(
            text_embeds=numpy.sin(numpy.arange(text, dtype=numpy.float32))[None],
            time_ids=numpy.array([[*size, 0, 0, *size]], dtype=numpy.float32),
        )
    return inputs


def vae_input(model, latents):
    """Returns latents in the scale of the decoder, which differs from the scale of the UNet."""
    vae = config(model, "vae")
    ripples = ripple(vae["latent_channels"], *sides(latents))
    factor = vae.get("scaling_factor") or 0.18215
    return ripples / numpy.float32(factor) + numpy.float32(vae.get("shift_factor") or 0)
