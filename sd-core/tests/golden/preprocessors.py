"""Writes preprocessors.json: what OpenCV, sd-webui-controlnet and diffusers make of made-up pictures.

    pip install opencv-python-headless==5.0.0.93 numpy==2.4.6 torch==2.15.0 && \
        python preprocessors.py FOLDER

FOLDER is a checkout of https://github.com/Mikubill/sd-webui-controlnet at the commit below. Its
functions are run as they are. Modules that they import and do not need are replaced.

The tests make the pictures, too, by the formulas of `noise`, `waves`, `soft` and `flat`, and compare
checksums (CRC-32) of the bytes. Only where bytes may differ by one are they stored.
"""

import json
import subprocess
import sys
import types
import zlib
from importlib.metadata import version
from itertools import product
from pathlib import Path
from unittest.mock import MagicMock

import cv2
import numpy as np
import torch

VERSIONS = {"opencv-python-headless": "5.0.0.93", "numpy": "2.4.6", "torch": "2.15.0"}
for package, expected in VERSIONS.items():
    assert version(package).split("+")[0] == expected, (package, version(package))

COMMIT = "56cec5b2958edf3b1807b7e7b2b1b5186dbd2f81"


def hashed(index, seed):
    """Returns a random byte of each index."""
    x = index.astype(np.uint64) * 2654435761 + seed * 40503 + 12345
    x = x & 0xFFFFFFFF
    x ^= x >> 15
    x = (x * 2246822519) & 0xFFFFFFFF
    x ^= x >> 13
    return x & 255


def noise(seed, width, height):
    """Returns random bytes."""
    index = np.arange(width * height * 3)
    return hashed(index, seed).astype(np.uint8).reshape(height, width, 3)


def waves(seed, width, height):
    """Returns a smooth picture."""
    y, x, c = np.indices((height, width, 3))
    value = (x * (3 + c) + y * (5 + 2 * c) + seed * (17 + c)) % 510
    return np.where(value > 255, 510 - value, value).astype(np.uint8)


def soft(seed, width, height):
    """Returns noise of 8 × 8 pixels, with slopes between them."""
    y, x, c = np.indices((height, width, 3))
    right, down = x % 8, y % 8

    def corner(x, y):
        return hashed((y // 8 * 64 + x // 8) * 3 + c, seed).astype(int)

    above = corner(x, y) * (8 - right) + corner(x + 8, y) * right
    below = corner(x, y + 8) * (8 - right) + corner(x + 8, y + 8) * right
    return ((above * (8 - down) + below * down) // 64).astype(np.uint8)


def flat(seed, width, height):
    """Returns a picture of one color."""
    color = hashed(np.arange(3), seed).astype(np.uint8)
    return np.broadcast_to(color, (height, width, 3)).copy()


def disc(seed, width, height):
    """Returns a mask, [height, width], with a disc and a soft bar."""
    y, x = np.indices((height, width))
    mask = np.where((3 * x - width) ** 2 + (2 * y - height) ** 2 < (seed * 2) ** 2, 255, 0)
    mask[height * 3 // 4 : height * 3 // 4 + 2] = 40 * (seed % 7)
    return mask.astype(np.uint8)


PICTURES = {"noise": noise, "waves": waves, "soft": soft, "flat": flat}
SIZES = [(1, 1), (2, 3), (1, 40), (40, 1), (33, 21), (96, 96), (128, 64), (200, 3)]


def pictures(sizes=SIZES, kinds=PICTURES):
    """Yields pictures, each with the fields that the tests make it from."""
    for kind, (seed, size) in product(kinds, enumerate(sizes)):
        yield {"kind": kind, "seed": seed, "size": size}, PICTURES[kind](seed, *size)


def crc(pixels):
    return zlib.crc32(np.ascontiguousarray(pixels).tobytes())


def extension(folder):
    """Returns the modules of sd-webui-controlnet: the preprocessors without a model, and the older
    functions with their table."""
    head = subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, check=True)
    assert head.stdout.decode().strip() == COMMIT, head.stdout

    class Anything(types.ModuleType):
        """A module of WebUI, which the functions do not call."""
        __path__ = []

        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            return MagicMock()

    class Finder:
        """Finds WebUI's modules, and what the older preprocessors import for their models."""
        def find_spec(self, name, path=None, target=None):
            from importlib.machinery import ModuleSpec

            known = ("modules", "transformers", "scripts.enums", "scripts.logging", "scripts.utils")
            return ModuleSpec(name, self) if name.startswith(known) else None

        def create_module(self, spec):
            return Anything(spec.name)

        def exec_module(self, module):
            pass

    sys.meta_path.insert(0, Finder())
    sys.path.insert(0, folder)
    # Without the package's own __init__, which imports every preprocessor.
    package = types.ModuleType("scripts.preprocessor")
    package.__path__ = [f"{folder}/scripts/preprocessor"]
    sys.modules["scripts.preprocessor"] = package
    from scripts.preprocessor.legacy import processor
    from scripts.preprocessor.legacy.preprocessor_compiled import legacy_preprocessors

    import scripts.utils as utils

    utils.resize_image_with_pad = processor.resize_image_with_pad
    from scripts.preprocessor import model_free_preprocessors
    from scripts.supported_preprocessor import Preprocessor

    del model_free_preprocessors
    return processor, legacy_preprocessors, Preprocessor


def cannies():
    thresholds = [(100, 200), (1, 255), (200, 100), (30.7, 90.2), (0, 0), (255, 255), (400, 1000)]
    for (fields, picture), (low, high) in product(pictures(), thresholds):
        yield {**fields, "low": low, "high": high,
               "crc": crc(cv2.cvtColor(cv2.Canny(picture, low, high), cv2.COLOR_GRAY2RGB))}


def blurs():
    # Numbers that are the same in single and in double precision.
    sigmas = [0.0625, 0.125, 0.25, 0.5, 0.75, 1, 1.5, 2.25, 4, 9, 20, 33.5, 64]
    for (fields, picture), sigma in product(pictures(kinds=["noise", "waves", "soft"]), sigmas):
        yield {**fields, "sigma": sigma, "crc": crc(cv2.GaussianBlur(picture, (0, 0), sigma))}


def tones(processor):
    cases = pictures(sizes=[(1, 1), (2, 3), (96, 96)])
    gammas = [1, 0.125, 0.5, 0.75, 1.25, 1.5, 2]
    for fields, picture in cases:
        least = min(picture.shape[:2])
        for value in [0, 90, 127, 254, 255]:
            result, _ = processor.threshold(picture, res=least, thr_a=value)
            yield {**fields, "name": "threshold", "parameter": value, "crc": crc(result)}
        yield {**fields, "name": "invert", "parameter": 0, "crc": crc(processor.invert(picture)[0])}
        for gamma in gammas:
            for name in ["luminance", "intensity"]:
                result, _ = getattr(processor, f"recolor_{name}")(picture, thr_a=gamma)
                yield {**fields, "name": name, "parameter": gamma, "crc": crc(result)}


def areas():
    sizes = [
        ((7, 5), (3, 2)), ((96, 96), (48, 48)), ((96, 96), (32, 32)), ((96, 64), (24, 16)),
        ((96, 64), (60, 40)), ((97, 61), (88, 55)), ((100, 80), (12, 10)), ((100, 81), (50, 10)),
        ((3, 70), (1, 30)), ((1, 40), (1, 20)), ((40, 1), (13, 1)), ((128, 96), (16, 12)),
    ]
    for kind, (seed, (size, to)) in product(["noise", "waves", "soft"], enumerate(sizes)):
        small = cv2.resize(PICTURES[kind](seed, *size), to, interpolation=cv2.INTER_AREA)
        yield {"kind": kind, "seed": seed, "size": size, "to": to, "crc": crc(small)}


def tile(processor, picture, factor):
    """`tile_resample`, and the branches of `high_quality_resize` for pictures in color."""
    height, width, _ = picture.shape
    small, _ = processor.tile_resample(picture, thr_a=factor)
    if small.shape == picture.shape:
        return small
    colors = len(np.unique(small.reshape(-1, 3), axis=0))
    nearest = 2 < colors < 200
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST if nearest else cv2.INTER_CUBIC)


def tiles(processor):
    sizes = [(2, 3), (9, 14), (33, 21), (40, 32), (8, 40)]
    for (fields, picture), factor in product(pictures(sizes, ["noise", "soft", "flat"]), [1, 1.25, 2, 4]):
        height, width, _ = picture.shape
        if min(int(width / factor), int(height / factor)) == 0:
            continue
        yield {**fields, "factor": factor, "bytes": tile(processor, picture, factor).tobytes().hex()}


def conditions():
    """`make_inpaint_condition` of diffusers 0.42.1, docs/source/en/api/pipelines/controlnet.md."""
    for (fields, picture), seed in product(pictures(kinds=["noise", "waves"]), [3, 5, 11]):
        mask = disc(seed, *fields["size"])
        condition = picture.astype(np.float32) / 255.0
        condition[mask.astype(np.float32) / 255.0 > 0.5] = -1.0
        condition = torch.from_numpy(condition[None].transpose(0, 3, 1, 2))
        yield {**fields, "disc": seed, "crc": crc(condition.numpy())}


NAMES = ["none", "canny", "threshold", "recolor_luminance", "recolor_intensity", "invert",
         "blur_gaussian", "tile_resample"]


def parameters(table, registered):
    """The default, the least and the most of each parameter."""
    for name in NAMES:
        if name in table:
            sliders = [table[name][f"slider_{index}"] for index in [1, 2]]
            values = [[slider["value"], slider["minimum"], slider["maximum"]] for slider in sliders if slider]
        else:
            known = registered.get_preprocessor(name)
            sliders = [known.slider_1, known.slider_2]
            values = [[slider.value, slider.minimum, slider.maximum] for slider in sliders if slider.visible]
        yield {"name": name, "parameters": values}


def applied(table, registered):
    """The preprocessors as the program calls them, in the resolution of the picture."""
    thresholds = {
        "none": [], "canny": [100, 200], "threshold": [127], "recolor_luminance": [1.5],
        "recolor_intensity": [0.5], "invert": [], "blur_gaussian": [9], "tile_resample": [1],
    }
    for name, (fields, picture) in product(NAMES, pictures(sizes=[(2, 3), (1, 40), (96, 96), (70, 130)])):
        values = thresholds[name]
        first, second = (values + [None, None])[:2]
        least = min(picture.shape[:2])
        if name in table:
            result, _ = table[name]["call_function"](img=picture, res=least, thr_a=first, thr_b=second)
        else:
            known = registered.get_preprocessor(name)
            result = known(picture, least, slider_1=first, slider_2=second)
        yield {**fields, "name": name, "thresholds": values, "crc": crc(result)}


def main():
    processor, table, registered = extension(sys.argv[1])
    golden = {
        "canny": cannies(), "blur": blurs(), "tones": tones(processor), "area": areas(),
        "tile": tiles(processor), "inpaint": conditions(), "parameters": parameters(table, registered),
        "apply": applied(table, registered),
    }
    golden = {kind: list(cases) for kind, cases in golden.items()}
    lines = []
    for kind, cases in golden.items():
        rows = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
        lines.append(f'"{kind}": [\n{rows}\n]')
    text = f'{{\n"versions": {json.dumps(VERSIONS)},\n' + ",\n".join(lines) + "\n}\n"
    Path(__file__).with_name("preprocessors.json").write_text(text)
    print({kind: len(cases) for kind, cases in golden.items()}, len(text), "bytes")


if __name__ == "__main__":
    main()
