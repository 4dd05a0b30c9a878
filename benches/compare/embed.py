"""Compares pooled CLIP embeddings of texts with transformers' `CLIPTextModel`.

    cargo build --release -p benches
    python benches/compare/embed.py [MODEL] [--threads N] [--runs 20] [--batches 1 16 64]

MODEL is a folder of a CLIP model, or of a Stable Diffusion model with its text encoder and
tokenizer. Default: CLIP-L's text model (12 layers, 768 wide) with random weights, which is made in
a temporary folder.

Both engines tokenise and encode the same short texts in f32 on the CPU, and take turns batch by
batch. Their embeddings must be equal within 1e-4. The table has milliseconds per batch, the median
and the quickest run. `longest` is transformers with `padding="longest"`, and `whole` is
transformers with the whole window of 77 tokens.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from shutil import copy

import numpy
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

ROOT = Path(__file__).parents[2]
THINGS = "fox owl bridge pizza lighthouse astronaut teapot mountain cat train castle violin".split()
SCENES = ["", " in the rain", " at night", ", watercolour", " on a hill at sunset", ", black and white photograph"]
TEXTS = [f"a {thing}{scene}" for scene in SCENES for thing in THINGS]


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model", type=Path, nargs="?")
    arguments.add_argument("--threads", type=int, default=0, help="0: each engine's default")
    arguments.add_argument("--runs", type=int, default=20)
    arguments.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    arguments = arguments.parse_args()
    torch.set_grad_enabled(False)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as temporary:
        compare(arguments, arguments.model or made(Path(temporary)))


def made(folder):
    torch.manual_seed(0)
    config = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
                            bos_token_id=49406, eos_token_id=49407, pad_token_id=49407)
    CLIPTextModel(config).save_pretrained(folder)
    for file in (ROOT / "examples/models/emoji/tokenizer").iterdir():
        copy(file, folder)
    return folder


def compare(arguments, folder):
    parts = [folder / "tokenizer", folder / "text_encoder"] if (folder / "text_encoder").exists() else [folder, folder]
    tokenizer = CLIPTokenizer.from_pretrained(parts[0])
    model = CLIPTextModel.from_pretrained(parts[1], dtype=torch.float32, attn_implementation="sdpa").eval()

    def transformers(texts, padding):
        start = time.perf_counter()
        tokens = tokenizer(texts, padding=padding, max_length=77, truncation=True, return_tensors="pt")
        pooled = model(input_ids=tokens.input_ids).pooler_output.numpy()
        return time.perf_counter() - start, pooled

    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    command = [target / "release/embed", folder, "--threads", str(arguments.threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:

        def ours(texts):
            process.stdin.write(json.dumps(texts) + "\n")
            answer = json.loads(process.stdout.readline())
            return answer["seconds"], numpy.array(answer["pooled"])

        print(f"transformers {version('transformers')}, torch {version('torch')}, milliseconds a batch, median (quickest)")
        print(f"{'texts':>6}{'tokens':>8}{'sd-onnx':>18}{'longest':>18}{'ratio':>8}{'whole':>18}{'ratio':>8}")
        for batch in arguments.batches:
            seconds = [[], [], []]
            for run in range(arguments.runs + 1):
                texts = [TEXTS[(run * batch + row * 7) % len(TEXTS)] for row in range(batch)]
                found = [ours(texts), transformers(texts, "longest"), transformers(texts, "max_length")]
                for _, pooled in found[1:]:
                    apart = numpy.abs(pooled[:, :8] - found[0][1]).max()
                    assert apart <= 1e-4, f"the embeddings are {apart:.1e} apart"
                # The first run of a batch size does not count.
                for engine, (took, _) in enumerate(found):
                    seconds[engine] += [took] * (run > 0)
            tokens = max(len(ids) for ids in tokenizer(texts).input_ids)
            medians = [1000 * statistics.median(times) for times in seconds]
            shown = [f"{median:.1f} ({1000 * min(times):.1f})" for median, times in zip(medians, seconds)]
            print(f"{batch:6}{tokens:8}{shown[0]:>18}{shown[1]:>18}{medians[0] / medians[1]:8.2f}{shown[2]:>18}"
                  f"{medians[0] / medians[2]:8.2f}")
        process.stdin.close()


if __name__ == "__main__":
    main()
