"""Writes tiles.json: what WebUI's own functions make of made-up pictures, in tiles and enlarged.

    pip install pillow==13.0.0 numpy==2.4.6 torch==2.15.0 && python tiles.py WEBUI

WEBUI is a checkout of AUTOMATIC1111/stable-diffusion-webui, v1.10.1. Its functions are executed as
they are. The functions of other modules that they call are replaced here.

The tests make the same pictures, and compare checksums (CRC-32) of the bytes. `network` stands for
a network; it computes in whole numbers, so that its bytes are exact.
"""

import ast
import hashlib
import json
import math
import sys
import types
import zlib
from collections import namedtuple
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

for package, expected in {"pillow": "13.0.0", "torch": "2.15.0", "numpy": "2.4.6"}.items():
    assert version(package).split("+")[0] == expected, (package, version(package))

SOURCES = {
    "images.py": "c1370f739d0ec64d2798a4ad3aab65cc191b817bba390f7f260129fd3ab40586",
    "upscaler.py": "d0dc35f609cecba6658d3c983d73fab30682fb1884042ef493c304bace3566f4",
    "upscaler_utils.py": "c23a6e0681599749c6e01afea8c93c3e6bcf07b9eb0f89a3a2a43bc26c8823ee",
}


def executed(name, wanted, **globals_):
    """Executes the functions and classes `wanted` of a file of WebUI, and returns its globals."""
    text = (Path(sys.argv[1]) / "modules" / name).read_bytes()
    digest = hashlib.sha256(text).hexdigest()
    assert digest == SOURCES[name], f"{name} has the SHA-256 {digest}"
    tree = ast.parse(text)
    kept = [node for node in tree.body if getattr(node, "name", None) in wanted]
    assert {node.name for node in kept} == set(wanted)
    found = dict(globals_, np=np, math=math, Image=Image, namedtuple=namedtuple, torch=torch)
    future = ast.parse("from __future__ import annotations").body
    exec(compile(ast.Module(future + kept, []), name, "exec"), found)
    return found


images = executed("images.py", {"Grid", "split_grid", "combine_grid"})
images = SimpleNamespace(**{k: images[k] for k in ("Grid", "split_grid", "combine_grid")})


class Bar:
    """Replaces a progress bar."""

    def __init__(self, **_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def update(self, _):
        pass


def of_picture(image, tile_w, tile_h, overlap):
    """Returns a grid. Where the picture is smaller than a tile, WebUI fills the tile with black.
    This crate makes the tile smaller."""
    return images.split_grid(image, min(tile_w, image.width), min(tile_h, image.height), overlap)


of_network = SimpleNamespace(**vars(images))
of_network.split_grid = of_picture
state = SimpleNamespace(interrupted=False, skipped=False)
shared = SimpleNamespace(state=state, opts=SimpleNamespace(enable_upscale_progressbar=False))
utils = executed(
    "upscaler_utils.py",
    {"pil_image_to_torch_bgr", "torch_bgr_to_pil_image", "upscale_pil_patch", "upscale_with_model"},
    images=of_network, shared=shared, tqdm=SimpleNamespace(tqdm=Bar), Callable=object,
    logger=SimpleNamespace(debug=lambda *_: None),
    devices=SimpleNamespace(without_autocast=torch.no_grad),
    torch_utils=SimpleNamespace(get_param=lambda _: torch.zeros(1)))
options = SimpleNamespace(ESRGAN_tile=192, ESRGAN_tile_overlap=8)
modules = SimpleNamespace(shared=SimpleNamespace(
    opts=options, device="cpu", cmd_opts=SimpleNamespace(no_half=True)))
upscalers = executed(
    "upscaler.py", {"Upscaler", "UpscalerLanczos", "UpscalerNearest", "UpscalerData"},
    modules=modules, shared=shared, abstractmethod=lambda f: f, os=types.SimpleNamespace(),
    PIL=SimpleNamespace(Image=Image.Image), LANCZOS=Image.Resampling.LANCZOS,
    NEAREST=Image.Resampling.NEAREST)


def waves(seed, width, height):
    """Returns a smooth picture, the same as `waves` of pixels.py."""
    y, x, c = np.indices((height, width, 3))
    value = (x * (3 + c) + y * (5 + 2 * c) + seed * (17 + c)) % 510
    return Image.fromarray(np.where(value > 255, 510 - value, value).astype(np.uint8))


def network(scale):
    """Returns a network whose pixels depend on their place in the tile, so that seams show."""

    def run(picture):
        bytes_ = torch.round(picture * 255).long()
        large = bytes_.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
        height, width = large.shape[2:]
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        return ((large * 3) // 4 + (3 * y + 5 * x) % 60).float() / 255

    return run


def redrawn(tile, index):
    """Returns a tile as if it had been redrawn: each one has another brightness."""
    return Image.fromarray(np.asarray(tile) // 2 + np.uint8(31 * index % 128))


def crc(picture):
    return zlib.crc32(picture.tobytes())


def grids():
    cases = [
        ((100, 64), (64, 64), 16), ((96, 96), (32, 32), 8), ((97, 61), (32, 24), 7),
        ((200, 90), (64, 48), 2), ((65, 64), (64, 64), 1), ((64, 64), (64, 64), 16),
        ((50, 40), (64, 64), 16), ((50, 100), (64, 48), 16), ((80, 200), (64, 64), 63),
        ((301, 33), (40, 40), 20), ((129, 130), (64, 64), 60),
    ]
    for seed, (size, tile, overlap) in enumerate(cases):
        grid = images.split_grid(waves(seed, *size), *tile, overlap)
        places, index = [], 0
        for y, _, row in grid.tiles:
            for entry in row:
                places.append([entry[0], y])
                entry[2] = redrawn(entry[2], index)
                index += 1
        joined = images.combine_grid(grid)
        yield dict(seed=seed, size=size, tile=tile, overlap=overlap, places=places, crc=crc(joined))


def enlarged():
    cases = [
        ((100, 64), 2.0, 2), ((100, 64), 3.0, 2), ((30, 20), 7.5, 2), ((200, 193), 1.0, 2),
        ((300, 210), 1.7, 4), ((64, 64), 4.0, 1), ((220, 200), 0.5, 4), ((25, 31), 16.0, 2),
        ((33, 33), 1.0, 1), ((200, 200), 2.01, 3), ((401, 195), 1.35, 2),
    ]
    for seed, (size, factor, scale) in enumerate(cases):
        upscaler = upscalers["Upscaler"]()
        run = network(scale)
        upscaler.do_upscale = lambda image, _: utils["upscale_with_model"](
            run, image, tile_size=options.ESRGAN_tile, tile_overlap=options.ESRGAN_tile_overlap)
        picture = upscaler.upscale(waves(seed, *size), factor)
        yield dict(seed=seed, size=size, factor=factor, scale=scale, to=picture.size, crc=crc(picture))


def filtered():
    cases = [((100, 64), 2.0), ((100, 64), 1.37), ((65, 33), 3.3), ((64, 64), 1.0),
             ((65, 33), 1.0), ((100, 64), 0.4)]
    for seed, (size, factor) in enumerate(cases):
        for name in ("Lanczos", "Nearest"):
            upscaler = upscalers[f"Upscaler{name}"]()
            picture = upscaler.upscale(waves(seed, *size), factor)
            yield dict(seed=seed, size=size, factor=factor, filter=name.lower(), to=picture.size,
                       crc=crc(picture))


golden = dict(grids=list(grids()), enlarged=list(enlarged()), filtered=list(filtered()))
text = ",\n".join(
    f'"{kind}": [\n' + ",\n".join(json.dumps(case) for case in cases) + "\n]"
    for kind, cases in golden.items())
(Path(__file__).parent / "tiles.json").write_text("{\n" + text + "\n}\n")
