"""Writes sd-parsers.json into a folder: what sd-parsers 0.6 reads of the pictures in it.

    python infotext_folder.py FOLDER [FOLDER]

The test `infotext_files` compares it with what this crate reads. The folder infotext-files has such
a file. For others, such as the pictures of sd-parsers' own tests and of ComfyUI's examples, name
the folder in the environment variable SD_INFOTEXT_FILES. Needs sd-parsers 0.6 and Pillow 13.0.
"""

import importlib.metadata
import json
import pathlib
import sys

import PIL
from PIL import Image
from sd_parsers import ParserManager
from sd_parsers.extractors import Eagerness

assert importlib.metadata.version("sd-parsers") == "0.6"
assert PIL.__version__.startswith("13.0")

ENDINGS = {".png", ".jpg", ".jpeg", ".webp"}


def text(value):
    return None if value is None else str(value)


def size(info):
    """sd-parsers leaves the size where the program has it."""
    metadata = info.metadata
    if "Size" in metadata:
        return metadata["Size"]
    latents = metadata.get("EmptyLatentImage", [])
    found = latents if latents else [metadata]
    if len(found) == 1 and "width" in found[0] and "height" in found[0]:
        return f'{found[0]["width"]}x{found[0]["height"]}'
    return None


def sampler(found):
    parameters = found.parameters
    name = found.model.name if found.model else None
    return {
        "name": found.name,
        "scheduler": text(parameters.get("scheduler")),
        "steps": text(parameters.get("steps")),
        "cfg_scale": text(parameters.get("cfg_scale")),
        "seed": text(parameters.get("seed", parameters.get("noise_seed"))),
        # Behind a LoRA, sd-parsers takes the link for the name.
        "model": name if isinstance(name, str) else None,
        "prompts": [prompt.value for prompt in found.prompts],
        "negatives": [prompt.value for prompt in found.negative_prompts],
    }


def read(manager, path):
    try:
        with Image.open(path) as image:
            info = manager.parse(image)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    if info is None:
        return {"error": "nothing found"}
    steps = [info.metadata[key] for key in ("steps", "Steps") if key in info.metadata]
    return {
        "generator": info.generator.value,
        "size": size(info),
        "steps": text(steps[0]) if steps else None,
        "samplers": [sampler(found) for found in info.samplers],
    }


def main():
    manager = ParserManager(eagerness=Eagerness.EAGER)
    for folder in map(pathlib.Path, sys.argv[1:]):
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
        found = {path.relative_to(folder).as_posix(): read(manager, path) for path in files}
        out = json.dumps(found, indent=1, ensure_ascii=False, sort_keys=True)
        (folder / "sd-parsers.json").write_text(out + "\n")
        print(folder, len(found), "files")


main()
