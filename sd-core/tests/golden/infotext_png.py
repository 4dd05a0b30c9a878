"""Writes itxt.png and ztxt.png: one pixel and an infotext, written by Pillow 13.0 as in WebUI.

In itxt.png the text is UTF-8 and follows the pixels. In ztxt.png it is compressed Latin-1 and
precedes them.
"""

import pathlib
import struct
import zlib

from PIL import Image, PngImagePlugin

here = pathlib.Path(__file__).parent
TEXT = "{}\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 42, Size: 64x64"


def save(name, prompt, zip):
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", TEXT.format(prompt), zip=zip)
    Image.new("RGB", (1, 1), "red").save(here / name, pnginfo=info)


save("itxt.png", "狐 🦊", False)
save("ztxt.png", "renard rusé", True)

# Pillow always writes the text before the pixels, so it is moved behind them.
data = (here / "itxt.png").read_bytes()
chunks, at = [], 8
while at < len(data):
    end = at + 12 + struct.unpack(">I", data[at:at + 4])[0]
    chunks.append(data[at:end])
    at = end
assert all(zlib.crc32(chunk[4:-4]) == struct.unpack(">I", chunk[-4:])[0] for chunk in chunks)
text = [chunk for chunk in chunks if chunk[4:8] == b"iTXt"]
rest = [chunk for chunk in chunks if chunk[4:8] != b"iTXt"]
assert len(text) == 1 and rest[-1][4:8] == b"IEND"
(here / "itxt.png").write_bytes(data[:8] + b"".join(rest[:-1] + text + rest[-1:]))
for name in ("itxt.png", "ztxt.png"):
    with Image.open(here / name) as image:
        image.load()
        print(name, (here / name).stat().st_size, repr(image.text["parameters"]))
