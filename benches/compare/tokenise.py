"""Compares tokenising in this project with Hugging Face's `tokenizers` in Python.

    cargo build --release -p benches
    tokenise.py [FOLDER] [--runs 5]

FOLDER holds a tokenizer. Default: the small model's tokenizer. Both tokenise the same prompts in
turns, and must give the same ids. The call in Python is `encode(prompt, add_special_tokens=False)`
of the `tokenizers.Tokenizer` in transformers' `CLIPTokenizer`.

The table has microseconds per call, the quickest of a thousand calls in each run. `parse` is the
parsing of the prompt language, which comes before tokenising.
"""

import argparse
import json
import os
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

from transformers import CLIPTokenizer

ROOT = Path(__file__).parents[2]
PROMPTS = [
    "a fox",
    "a cute fox girl, watercolour",
    "masterpiece, best quality, highly detailed portrait of a cute fox girl in a flower field at sunset, golden hour, soft light, "
    "watercolour, intricate, sharp focus, trending, 8k, bokeh, volumetric fog, by a famous painter, wide angle, cinematic composition",
    "(masterpiece, best quality:1.2), portrait of a [cute:wild:0.5] fox girl in a ((flower field)) at [sunset|dawn], <lora:painter:0.7>",
    "caf\u00e9 \U0001f98a \u732b\u3068\u72d0 it's 42 " * 20,
    "an old stone bridge in the rain, supercalifragilisticexpialidocious, " * 200,
]


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", type=Path, nargs="?", default=ROOT / "examples/models/emoji/tokenizer")
    arguments.add_argument("--runs", type=int, default=5)
    arguments = arguments.parse_args()
    tokenizer = CLIPTokenizer.from_pretrained(arguments.folder).backend_tokenizer
    tokenizer.no_truncation()
    tokenizer.no_padding()

    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    ours, theirs, parse = ([float("inf")] * len(PROMPTS) for _ in range(3))
    for _ in range(arguments.runs):
        command = [target / "release/tokenise", arguments.folder]
        done = subprocess.run(command, input="\n".join(PROMPTS) + "\n", stdout=subprocess.PIPE, text=True, check=True, encoding="utf-8")
        for index, row in enumerate(json.loads(done.stdout)):
            assert row["ids"] == tokenizer.encode(PROMPTS[index], add_special_tokens=False).ids, PROMPTS[index]
            ours[index] = min(ours[index], row["tokenise_us"])
            parse[index] = min(parse[index], row["parse_us"])
        for index, prompt in enumerate(PROMPTS):
            theirs[index] = min(theirs[index], quickest(lambda: tokenizer.encode(prompt, add_special_tokens=False)))
    print(f"tokenizers {version('tokenizers')}, microseconds")
    print(f"{'tokens':>8}{'bytes':>8}{'sd-text':>10}{'Python':>10}{'ratio':>8}{'parse':>8}{'of it':>8}")
    for index, prompt in enumerate(PROMPTS):
        tokens = len(tokenizer.encode(prompt, add_special_tokens=False).ids)
        print(f"{tokens:8}{len(prompt.encode()):8}{ours[index]:10.1f}{theirs[index]:10.1f}{ours[index] / theirs[index]:8.2f}"
              f"{parse[index]:8.2f}{parse[index] / ours[index]:8.3f}")


def quickest(call, calls=1000):
    best = float("inf")
    for _ in range(calls):
        start = time.perf_counter_ns()
        call()
        best = min(best, time.perf_counter_ns() - start)
    return best / 1000


if __name__ == "__main__":
    main()
