"""Writes pixels.json: what Pillow, OpenCV, WebUI's functions and torch make of made-up pictures.

    pip install pillow==13.0.0 opencv-python-headless==5.0.0.93 scikit-image==0.26.0 \
        blendmodes==2022 torch==2.15.0 numpy==2.4.6 && python pixels.py

WebUI pins blendmodes 2022, whose bytes differ from later versions. Its other packages are older
than these, but OpenCV 4.14.0.94 writes the same file, and so does the older scikit-image by its
code. Pillow 9.5 resamples tall pictures in another order.

WebUI's functions that need none of its other modules are contained here. They are those of commit
82a973c04367123ae98bd9abdf80d9eda9b910e2, and call the same functions of the packages.

The pictures and the results would be large. The tests therefore make the pictures, too, by the
formulas of `noise` and `waves`, and compare checksums (CRC-32) of the bytes.
"""

import json
import zlib
from importlib.metadata import version
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import torch
from blendmodes.blend import BlendType, blendLayers
from PIL import Image, ImageFilter, ImageOps
from skimage import exposure

VERSIONS = {
    "pillow": "13.0.0",
    "opencv-python-headless": "5.0.0.93",
    "scikit-image": "0.26.0",
    "blendmodes": "2022",
    "torch": "2.15.0",
    "numpy": "2.4.6",
}
for package, expected in VERSIONS.items():
    assert version(package).split("+")[0] == expected, (package, version(package))

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def noise(seed, width, height, channels):
    """Returns random bytes, [height, width, channels]."""
    x = np.arange(width * height * channels, dtype=np.uint64) * 2654435761 + seed * 40503 + 12345
    x = x & 0xFFFFFFFF
    x ^= x >> 15
    x = (x * 2246822519) & 0xFFFFFFFF
    x ^= x >> 13
    return (x & 255).astype(np.uint8).reshape(height, width, channels)


def waves(seed, width, height, channels):
    """Returns a smooth picture, [height, width, channels]."""
    y, x, c = np.indices((height, width, channels))
    value = (x * (3 + c) + y * (5 + 2 * c) + seed * (17 + c)) % 510
    return np.where(value > 255, 510 - value, value).astype(np.uint8)


def disc(seed, width, height):
    """Returns a mask, [height, width], with a disc and a soft bar."""
    y, x = np.indices((height, width))
    mask = np.where((3 * x - width) ** 2 + (2 * y - height) ** 2 < (seed * 2) ** 2, 255, 0)
    mask[height * 3 // 4 : height * 3 // 4 + 2] = 40 * (seed % 7)
    return mask.astype(np.uint8)


PICTURES = {"noise": noise, "waves": waves}


def image(array):
    """Returns bytes [height, width, channels] as a Pillow picture."""
    height, width, channels = array.shape
    return Image.frombytes(MODES[channels], (width, height), array.tobytes())


def crc(pixels):
    """Returns the checksum of an array or a Pillow picture."""
    return zlib.crc32(pixels.tobytes())


def resizes():
    sizes = [
        ((7, 5), (7, 5)), ((7, 5), (13, 11)), ((33, 71), (28, 60)), ((33, 48), (28, 40)),
        ((7, 70), (3, 30)), ((80, 40), (79, 10)), ((10, 25), (20, 24)), ((64, 48), (17, 48)),
        ((48, 64), (48, 17)), ((1, 1), (9, 4)), ((1, 300), (6, 5)), ((300, 1), (5, 6)),
        ((2, 3), (301, 200)), ((97, 61), (1, 1)), ((123, 45), (246, 90)), ((100, 90), (31, 290)),
    ]
    filters = ["nearest", "box", "bilinear", "bicubic", "lanczos"]
    for name, channels, (i, (old, new)) in product(filters, MODES, enumerate(sizes)):
        kind = ["noise", "waves"][(i + channels) % 2]
        picture = image(PICTURES[kind](i, *old, channels))
        resized = picture.resize(new, Image.Resampling[name.upper()])
        yield {"filter": name, "channels": channels, "kind": kind, "seed": i, "from": old, "to": new,
               "crc": crc(resized)}


def gaussian(mask, sigma):
    """WebUI, modules/processing.py, StableDiffusionProcessingImg2Img.init."""
    kernel_size = 2 * int(2.5 * sigma + 0.5) + 1
    mask = cv2.GaussianBlur(mask, (kernel_size, 1), sigma)
    return cv2.GaussianBlur(mask, (1, kernel_size), sigma)


def gaussians():
    sizes = [(1, 1), (1, 40), (40, 1), (2, 3), (33, 21), (128, 96), (600, 5)]
    # The sigmas are the same in single and in double precision.
    sigmas = [0.125, 0.25, 0.5, 1, 1.5, 2, 2.75, 3, 4, 5, 7.25, 8, 10, 12, 16, 24, 32, 48, 63.5, 64]
    for (i, size), sigma in product(enumerate(sizes), sigmas):
        kind = ["noise", "disc"][i % 2] if sigma < 20 else ["disc", "noise"][i % 2]
        mask = noise(i, *size, 1)[..., 0] if kind == "noise" else disc(9 + i, *size)
        blurred = gaussian(mask, sigma).reshape(mask.shape)
        yield {"kind": kind, "seed": i, "size": size, "sigma": sigma, "crc": crc(blurred)}


def pillow_gaussians():
    sizes = [(1, 1), (1, 40), (40, 1), (2, 3), (33, 21), (90, 64)]
    radii = [0, 0.125, 0.5, 1, 1.5, 2, 3.25, 4, 7, 16, 33.5, 64, 256, 1000]
    for channels, (i, size), radius in product(MODES, enumerate(sizes), radii):
        kind = ["noise", "waves"][(i + channels) % 2]
        picture = image(PICTURES[kind](i, *size, channels))
        blurred = picture.filter(ImageFilter.GaussianBlur(radius))
        yield {"channels": channels, "kind": kind, "seed": i, "size": size, "radius": radius,
               "crc": crc(blurred)}


def fill(picture, mask):
    """WebUI, modules/masking.py, fill."""
    image_mod = Image.new("RGBA", (picture.width, picture.height))
    image_masked = Image.new("RGBa", (picture.width, picture.height))
    image_masked.paste(picture.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask.convert("L")))
    image_masked = image_masked.convert("RGBa")
    for radius, repeats in [(256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1)]:
        blurred = image_masked.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(repeats):
            image_mod.alpha_composite(blurred)
    return image_mod.convert("RGB")


def fills():
    sizes = [(1, 1), (1, 50), (50, 1), (40, 30), (96, 128), (200, 150)]
    masks = {
        "disc": lambda i, size: disc(9 + i, *size),
        "noise": lambda i, size: noise(i, *size, 1)[..., 0],
        "empty": lambda i, size: np.zeros(size[::-1], np.uint8),
        "full": lambda i, size: np.full(size[::-1], 255, np.uint8),
    }
    for kind, (i, size), (name, mask) in product(PICTURES, enumerate(sizes), masks.items()):
        picture = image(PICTURES[kind](i, *size, 3))
        filled = fill(picture, Image.fromarray(mask(i, size)))
        yield {"kind": kind, "seed": i, "size": size, "mask": name, "crc": crc(filled)}


def get_crop_region_v2(mask, pad):
    """WebUI, modules/masking.py, get_crop_region_v2."""
    if box := mask.getbbox():
        x1, y1, x2, y2 = box
        return max(x1 - pad, 0), max(y1 - pad, 0), min(x2 + pad, mask.size[0]), min(y2 + pad, mask.size[1])
    return None


def expand_crop_region(crop_region, processing_width, processing_height, image_width, image_height):
    """WebUI, modules/masking.py, expand_crop_region."""
    x1, y1, x2, y2 = crop_region
    ratio_crop_region = (x2 - x1) / (y2 - y1)
    ratio_processing = processing_width / processing_height
    if ratio_crop_region > ratio_processing:
        desired_height = (x2 - x1) / ratio_processing
        desired_height_diff = int(desired_height - (y2 - y1))
        y1 -= desired_height_diff // 2
        y2 += desired_height_diff - desired_height_diff // 2
        if y2 >= image_height:
            diff = y2 - image_height
            y2 -= diff
            y1 -= diff
        if y1 < 0:
            y2 -= y1
            y1 -= y1
        if y2 >= image_height:
            y2 = image_height
    else:
        desired_width = (y2 - y1) * ratio_processing
        desired_width_diff = int(desired_width - (x2 - x1))
        x1 -= desired_width_diff // 2
        x2 += desired_width_diff - desired_width_diff // 2
        if x2 >= image_width:
            diff = x2 - image_width
            x2 -= diff
            x1 -= diff
        if x1 < 0:
            x2 -= x1
            x1 -= x1
        if x2 >= image_width:
            x2 = image_width
    return x1, y1, x2, y2


def regions():
    rectangles = [
        ((100, 80), None), ((100, 80), (0, 0, 100, 80)), ((100, 80), (50, 40, 51, 41)), ((1, 1), (0, 0, 1, 1)),
        ((100, 80), (0, 70, 9, 80)), ((100, 80), (91, 0, 100, 7)), ((100, 80), (3, 20, 97, 30)),
        ((100, 80), (40, 1, 47, 79)), ((1, 10000), (0, 9000, 1, 9010)), ((10000, 1), (17, 0, 300, 1)),
    ]
    drawn = [(512, 512), (64, 48), (48, 64), (1024, 64), (64, 1024), (8, 4096)]
    for (size, rectangle), padding, drawn in product(rectangles, [0, 1, 5, 32, 300], drawn):
        mask = Image.new("L", size)
        if rectangle:
            mask.paste(1, rectangle)
        region = get_crop_region_v2(mask, padding)
        if region:
            x1, y1, x2, y2 = expand_crop_region(region, *drawn, *size)
            region = [x1, y1, x2 - x1, y2 - y1]
        yield {"size": size, "rectangle": rectangle, "padding": padding, "drawn": drawn, "region": region}


def setup_color_correction(picture):
    """WebUI, modules/processing.py, setup_color_correction."""
    return cv2.cvtColor(np.asarray(picture.copy()), cv2.COLOR_RGB2LAB)


def apply_color_correction(correction, original_image):
    """WebUI, modules/processing.py, apply_color_correction."""
    lab = cv2.cvtColor(np.asarray(original_image), cv2.COLOR_RGB2LAB)
    matched = exposure.match_histograms(lab, correction, channel_axis=2)
    picture = Image.fromarray(cv2.cvtColor(matched, cv2.COLOR_LAB2RGB).astype("uint8"))
    picture = blendLayers(picture, original_image, BlendType.LUMINOSITY)
    return picture.convert("RGB")


def corrections():
    sizes = [(1, 1), (1, 60), (60, 1), (40, 30), (128, 96)]
    kinds = list(product(PICTURES, PICTURES))
    for (i, size), (j, like_size), (kind, like) in product(enumerate(sizes), enumerate(sizes), kinds):
        picture = image(PICTURES[kind](i, *size, 3))
        other = image(PICTURES[like](j + 10, *like_size, 3))
        corrected = apply_color_correction(setup_color_correction(other), picture)
        yield {"kind": kind, "seed": i, "size": size, "like": like, "like_seed": j + 10,
               "like_size": like_size, "crc": crc(corrected)}


def labs():
    """The conversions of all colors, in the order of their hexadecimal numbers."""
    axis = np.arange(256, dtype=np.uint8)
    cube = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(4096, 4096, 3)
    yield {"rgb_to_lab": crc(cv2.cvtColor(cube, cv2.COLOR_RGB2LAB)),
           "lab_to_rgb": crc(cv2.cvtColor(cube, cv2.COLOR_LAB2RGB))}


def latents():
    modes = {
        "bilinear": ("bilinear", False), "bilinear_antialiased": ("bilinear", True),
        "bicubic": ("bicubic", False), "bicubic_antialiased": ("bicubic", True),
        "nearest": ("nearest", False), "nearest_exact": ("nearest-exact", False),
    }
    sizes = [
        ((8, 8), (16, 16)), ((8, 8), (8, 8)), ((6, 9), (13, 7)), ((16, 12), (5, 5)), ((1, 1), (3, 2)),
        ((1, 70), (4, 3)), ((64, 64), (96, 96)), ((64, 96), (83, 128)), ((128, 160), (121, 37)),
        ((8, 8), (8, 11)), ((7, 128), (200, 256)),
    ]
    for (name, (mode, antialias)), (i, (old, new)) in product(modes.items(), enumerate(sizes)):
        values = noise(i, old[1], old[0], 2 * 3).astype(np.float32) / 64 - 2
        # [n, c, h, w] of [h, w, n · c]
        values = torch.from_numpy(values.transpose(2, 0, 1).reshape(2, 3, *old).copy())
        resized = torch.nn.functional.interpolate(values, new, mode=mode, antialias=antialias)
        flat = resized.flatten()
        stride = max(1, flat.numel() // 50)
        yield {"filter": name, "seed": i, "from": old, "to": new, "stride": stride,
               "values": flat[::stride].tolist()}


def main():
    # With more threads, torch's bilinear values of large results differ by up to 1e-5.
    torch.set_num_threads(1)
    kinds = {
        "resize": resizes, "gaussian": gaussians, "pillow_gaussian": pillow_gaussians, "fill": fills,
        "region": regions, "color": corrections, "lab": labs, "latents": latents,
    }
    golden = {kind: list(cases()) for kind, cases in kinds.items()}
    lines = []
    for kind, cases in golden.items():
        rows = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
        lines.append(f'"{kind}": [\n{rows}\n]')
    versions = json.dumps(VERSIONS)
    text = f'{{\n"versions": {versions},\n' + ",\n".join(lines) + "\n}\n"
    Path(__file__).with_name("pixels.json").write_text(text)
    print({kind: len(cases) for kind, cases in golden.items()}, len(text), "bytes")


if __name__ == "__main__":
    main()
