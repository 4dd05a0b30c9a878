"""Writes infotext-files: small pictures with texts as other programs write them.

    python infotext_files.py
    python infotext_folder.py infotext-files

Each file follows the code that is named beside it. The texts are our own. Needs piexif 1.1.3 and
Pillow 13.0.
"""

import gzip
import json
import pathlib
import struct

import PIL
import piexif
import piexif.helper
from PIL import Image, PngImagePlugin

assert piexif.VERSION == "1.1.3"
assert PIL.__version__.startswith("13.0")

HERE = pathlib.Path(__file__).parent / "infotext-files"
ENTRIES = "Steps: 20, Sampler: Euler a, Schedule type: Karras, CFG scale: 6.5, Seed: 42, Size: 64x96"
TEXT = f"a fox 狐 🦊, (red:1.2)\nNegative prompt: blurry\n{ENTRIES}"
SIZE = (48, 48)


def picture(mode="RGB"):
    return Image.new(mode, SIZE, (40, 90, 160) if mode == "RGB" else (40, 90, 160, 255))


def png(name, image=None, **texts):
    info = PngImagePlugin.PngInfo()
    for key, value in texts.items():
        info.add_text(key, value if isinstance(value, str) else json.dumps(value))
    (image or picture()).save(HERE / name, pnginfo=info, optimize=True)


def user_comment(text):
    """`save_image_with_geninfo` of WebUI 1.10, `modules/images.py`."""
    comment = piexif.helper.UserComment.dump(text, encoding="unicode")
    return piexif.dump({"Exif": {piexif.ExifIFD.UserComment: comment}})


def little_endian(comment):
    """A TIFF in the other byte order, as programs outside Python often write it."""
    first, second = 8, 8 + 2 + 12 + 4
    place = second + 2 + 12 + 4
    tiff = b"II*\0" + struct.pack("<I", first)
    tiff += struct.pack("<HHHIII", 1, 0x8769, 4, 1, second, 0)
    tiff += struct.pack("<HHHIII", 1, 0x9286, 7, len(comment), place, 0)
    return b"Exif\0\0" + tiff + comment


def exif_files():
    picture().save(HERE / "webui.jpg", quality=80)
    piexif.insert(user_comment(TEXT), str(HERE / "webui.jpg"))
    picture().save(HERE / "webui.webp", lossless=True)
    piexif.insert(user_comment(TEXT), str(HERE / "webui.webp"))
    texts = {
        "little-endian.jpg": b"UNICODE\0" + TEXT.encode("utf-16-le"),
        "mark.jpg": b"UNICODE\0" + TEXT.encode("utf-16"),
        "big-in-little.webp": b"UNICODE\0" + TEXT.encode("utf-16-be"),
        "ascii.jpg": b"ASCII\0\0\0" + TEXT.replace("狐 🦊", "fox").encode("ascii"),
        "utf8.webp": TEXT.encode("utf-8"),
        "exif.png": b"UNICODE\0" + TEXT.encode("utf-16-le"),
    }
    for name, comment in texts.items():
        picture().save(HERE / name, exif=little_endian(comment))


def stealth(name, text, mode, compressed):
    """`add_data` of `scripts/stealth_pnginfo.py` in ashen-sensored/sd_webui_stealth_pnginfo."""
    kind = f"stealth_{'png' if mode == 'RGBA' else 'rgb'}{'comp' if compressed else 'info'}"
    data = text.encode()
    data = gzip.compress(data, mtime=0) if compressed else data
    data = kind.encode() + struct.pack(">I", 8 * len(data)) + data
    bits = [byte >> (7 - i) & 1 for byte in data for i in range(8)]
    image = picture(mode)
    pixels, used = image.load(), [3] if mode == "RGBA" else [0, 1, 2]
    places = [(x, y, c) for x in range(SIZE[0]) for y in range(SIZE[1]) for c in used]
    assert len(bits) <= len(places), (name, len(bits))
    for (x, y, channel), bit in zip(places, bits):
        pixel = list(pixels[x, y])
        pixel[channel] = pixel[channel] & ~1 | bit
        pixels[x, y] = tuple(pixel)
    image.save(HERE / name, optimize=True)


# The keys of NovelAI's own example in NovelAI/novelai-image-metadata, with the values of V1 to V3.
NOVELAI = {
    "Description": "{{a fox}}, [snow] (day)",
    "Software": "NovelAI",
    "Source": "Stable Diffusion 1D44365E",
    "Comment": {
        "steps": 28, "sampler": "k_dpmpp_2m", "seed": 7, "strength": 0.7, "noise": 0.0, "scale": 5.5,
        "uc": "lowres", "noise_schedule": "exponential", "width": 64, "height": 96, "sm": True,
    },
}


def novelai_files():
    texts = NOVELAI | {"Comment": json.dumps(NOVELAI["Comment"])}
    png("novelai.png", **texts)
    stealth("novelai-stealth.png", json.dumps(texts), "RGBA", True)


def workflow(graph):
    """The links of the editor's graph, as far as sd-parsers needs them."""
    links = []
    for node, value in graph.items():
        for place, (key, source) in enumerate(value["inputs"].items()):
            if isinstance(source, list):
                kind = {"clip": "CLIP", "model": "MODEL"}.get(key, "CONDITIONING")
                links.append([len(links), int(source[0]), source[1], int(node), place, kind])
    return {"last_node_id": 99, "links": links, "nodes": []}


def nodes(**nodes):
    return {
        name[1:]: {"inputs": inputs, "class_type": kind} for name, (kind, inputs) in nodes.items()
    }


def text(words, clip):
    return "CLIPTextEncode", {"text": words, "clip": clip}


def latents(batch=1):
    return "EmptyLatentImage", {"width": 64, "height": 96, "batch_size": batch}


def checkpoint(name="models/fox.safetensors"):
    return "CheckpointLoaderSimple", {"ckpt_name": name}


def lora(name, model, clip, of):
    return "LoraLoader", {
        "lora_name": name, "strength_model": model, "strength_clip": clip,
        "model": [of, 0], "clip": [of, 1],
    }


def saved(samples):
    decode = "VAEDecode", {"samples": samples, "vae": ["4", 2]}
    return {"_8": decode, "_9": ("SaveImage", {"filename_prefix": "a", "images": ["8", 0]})}


def ksampler(model, latent, **more):
    values = {
        "seed": 18446744073709551615, "steps": 12, "cfg": 6.5, "sampler_name": "dpmpp_2m",
        "scheduler": "karras", "denoise": 1.0, "model": model, "positive": ["6", 0],
        "negative": ["7", 0], "latent_image": latent,
    }
    return "KSampler", values | more


# KSampler and its nodes are in ComfyUI's `nodes.py`, the others in `comfy_extras`.
PLAIN = nodes(
    _3=ksampler(["11", 0], ["5", 0]), _4=checkpoint(), _5=latents(4),
    _6=text("a (red:1.3) fox", ["12", 0]), _7=text("blurry", ["12", 0]), **saved(["3", 0]),
    _10=lora("ink.safetensors", 0.8, 0.6, "4"), _11=lora("styles/snow.pt", 0.5, 0.5, "10"),
    _12=("CLIPSetLastLayer", {"stop_at_clip_layer": -2, "clip": ["11", 1]}),
)
SECOND_PASS = nodes(
    _3=ksampler(["4", 0], ["5", 0]), _4=checkpoint(), _5=latents(),
    _6=text("a fox", ["4", 1]), _7=text("blurry", ["4", 1]), **saved(["21", 0]),
    _20=("LatentUpscale", {
        "upscale_method": "nearest-exact", "width": 128, "height": 192, "samples": ["3", 0],
    }),
    _21=ksampler(["4", 0], ["20", 0], seed=5, steps=8, denoise=0.5),
    _22=("ControlNetLoader", {"control_net_name": "depth.safetensors"}),
    _30=text("not used", ["4", 1]),
)
PICTURE = nodes(
    _3=ksampler(["4", 0], ["12", 0], denoise=0.6, seed=["40", 0], cfg=["41", 0]), _4=checkpoint(),
    _6=text("a fox", ["4", 1]), _7=("ControlNetApplyAdvanced", {
        "strength": 0.7, "start_percent": 0.0, "end_percent": 1.0, "positive": ["6", 0],
        "negative": ["14", 0], "control_net": ["22", 0], "image": ["10", 0],
    }),
    **saved(["3", 0]), _10=("LoadImage", {"image": "example.png"}),
    _12=("VAEEncode", {"pixels": ["10", 0], "vae": ["4", 2]}), _14=text("blurry", ["4", 1]),
    _22=("ControlNetLoader", {"control_net_name": "depth.safetensors"}),
    _40=("PrimitiveInt", {"value": 11}), _41=("SomeonesNode", {"value": 3.5}),
)
PICTURE["3"]["inputs"] |= {"positive": ["7", 0], "negative": ["7", 1]}
PICTURE["10"]["is_changed"] = [float("nan")]
CUSTOM = nodes(
    _1=("SamplerCustomAdvanced", {
        "noise": ["2", 0], "guider": ["3", 0], "sampler": ["15", 0], "sigmas": ["16", 0],
        "latent_image": ["5", 0],
    }),
    _2=("RandomNoise", {"noise_seed": 9}),
    _3=("CFGGuider", {"cfg": 4.5, "model": ["13", 0], "positive": ["6", 0], "negative": ["7", 0]}),
    _4=checkpoint(), _5=latents(), _6=text("a fox", ["4", 1]), _7=text("blurry", ["4", 1]),
    **saved(["1", 0]),
    _13=("FreeU", {"b1": 1.1, "b2": 1.2, "s1": 0.9, "s2": 0.2, "model": ["4", 0]}),
    _15=("KSamplerSelect", {"sampler_name": "euler"}),
    _16=("BasicScheduler", {"scheduler": "beta", "steps": 9, "denoise": 1.0, "model": ["13", 0]}),
)
ADVANCED = {
    "add_noise": "enable", "noise_seed": 3, "steps": 25, "cfg": 8.0, "sampler_name": "euler",
    "scheduler": "normal", "start_at_step": 0, "end_at_step": 20,
    "return_with_leftover_noise": "enable", "model": ["4", 0], "positive": ["6", 0],
    "negative": ["7", 0], "latent_image": ["5", 0],
}
REFINER = nodes(
    _1=("KSamplerAdvanced", ADVANCED), _4=checkpoint(), _5=latents(),
    _6=("CLIPTextEncodeSDXL", {
        "width": 128, "height": 192, "crop_w": 0, "crop_h": 8, "target_width": 64,
        "target_height": 96, "text_g": "a forest", "text_l": "a fox", "clip": ["4", 1],
    }),
    _7=text("blurry", ["4", 1]), **saved(["2", 0]),
    _2=("KSamplerAdvanced", ADVANCED | {
        "add_noise": "disable", "start_at_step": 20, "end_at_step": 10000, "model": ["14", 0],
        "return_with_leftover_noise": "disable", "positive": ["16", 0], "negative": ["17", 0],
        "latent_image": ["1", 0],
    }),
    _14=checkpoint("refiner.safetensors"), _16=text("a fox", ["14", 1]),
    _17=text("blurry", ["14", 1]),
)


def comfyui_files():
    """`SaveImage` in ComfyUI's `nodes.py`, and `SaveAnimatedWEBP` in `comfy_extras`."""
    for name, graph in [
        ("plain", PLAIN), ("second-pass", SECOND_PASS), ("picture", PICTURE), ("custom", CUSTOM),
        ("refiner", REFINER),
    ]:
        png(f"comfyui-{name}.png", prompt=graph, workflow=workflow(graph))
    image = picture()
    exif = image.getexif()
    exif[0x0110] = "prompt:" + json.dumps(PLAIN)
    exif[0x010f] = "workflow:" + json.dumps(workflow(PLAIN))
    image.save(HERE / "comfyui.webp", exif=exif, lossless=True)


def invokeai_files():
    """`CoreMetadataInvocation` of InvokeAI 3 to 5, and `metadata_dumps` and `dream_prompt_str` of
    2.3 in `ldm/invoke/args.py`."""
    png("invokeai-3.png", invokeai_metadata={
        "generation_mode": "sdxl_txt2img", "positive_prompt": "a fox+ in (deep snow)1.2",
        "negative_prompt": "blurry-", "width": 64, "height": 96, "seed": 8, "rand_device": "cpu",
        "cfg_scale": 7.5, "cfg_rescale_multiplier": 0.0, "steps": 30, "scheduler": "dpmpp_2m_k",
        "clip_skip": 1, "model": {"key": "1", "hash": "blake3:00", "name": "fox", "base": "sdxl"},
        "loras": [{"model": {"name": "ink", "base": "sdxl"}, "weight": 0.75}],
        "vae": {"name": "fixed"}, "seamless_x": True, "seamless_y": False, "app_version": "5.4.2",
        "positive_style_prompt": "watercolour", "negative_style_prompt": "",
    })
    dream = '"a fox [blurry]" -s 50 -S 2980 -W 64 -H 96 -C 5.0 -A k_euler_a -G 0.9 -U 4 0.95'
    png("invokeai-2.png", Dream=dream, **{"sd-metadata": {
        "model": "stable diffusion", "model_weights": "fox", "model_hash": "56d1442a0f" * 6 + "0000",
        "app_id": "invoke-ai/InvokeAI", "app_version": "2.3.0",
        "image": {
            "prompt": [{"prompt": "a fox [blurry]", "weight": 1.0}], "steps": 50, "cfg_scale": 5.0,
            "threshold": 0, "perlin": 0, "width": 64, "height": 96, "seed": 2980,
            "seamless": False, "hires_fix": False, "type": "txt2img", "sampler": "k_euler_a",
            "variations": [], "postprocessing": [{"type": "gfpgan", "strength": 0.9}],
        },
    }})
    png("invokeai-1.png", Dream=dream)


HERE.mkdir(exist_ok=True)
exif_files()
for mode in "RGBA", "RGB":
    for compressed in False, True:
        kind = f"{mode.lower()}-{'compressed' if compressed else 'plain'}"
        stealth(f"stealth-{kind}.png", TEXT, mode, compressed)
novelai_files()
comfyui_files()
invokeai_files()
for path in sorted(HERE.glob("*.*")):
    print(path.name, path.stat().st_size)
