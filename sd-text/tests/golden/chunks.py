"""Writes chunks.json, the chunks of long prompts that `tests/chunks.rs` expects.

    pip install -r requirements.txt lark==1.1.2 && python chunks.py STABLE_DIFFUSION_WEBUI

The argument is a checkout of AUTOMATIC1111/stable-diffusion-webui (AGPL-3.0; it stays outside this
repository). Its own `tokenize_line` of `modules/sd_hijack_clip.py` is run with transformers'
`CLIPTokenizer` and the vocabulary of `examples/models/emoji/tokenizer`. The Rust tokenizer is
compared with the same tokenizer. The prompts are made below.

Each row is [prompt, [ids up to the padding], [weight, number of tokens, …], the next chunk's ids,
…]. This script checks the padding.
"""

import json
import random
import sys
import types
from pathlib import Path

import lark
import transformers
from transformers import CLIPTokenizer

assert lark.__version__ == "1.1.2" and transformers.__version__ == "5.23.0"

HERE = Path(__file__).parent
BOS, EOS, LENGTH = 49406, 49407, 77
WORDS = "fox owl red hill sky snow blue tree old small moss lake night warm light stone river door".split()


def prompts():
    rng = random.Random(75)

    def words(count):
        return " ".join(rng.choice(WORDS) for _ in range(count))

    yield from ["", " ", "fox", ",", "BREAK", "BREAK BREAK", "fox BREAK", "BREAK fox", "fox BREAK owl", "(fox BREAK owl)", "(fox BREAK owl:1)", "(fox:1.3) BREAK [owl]", "fox,BREAK,owl"]
    # A comma at every position around the end of the first and of the second chunk.
    for before in range(50, 78):
        yield f"{words(before)}, {words(90 - before)}"
    for before in range(53, 78, 2):
        yield f"{words(60)}, {words(before)}, {words(60)}"
    # Exactly full chunks, and one token more or less.
    for count in [74, 75, 76, 149, 150, 151, 225, 300]:
        yield words(count)
        yield f"{words(count - 1)},"
    yield "fox, " * 150
    yield ", " * 160
    yield ",, " * 80
    yield "fox " * 54 + ", " + "owl " * 20 + "(red:1.2), " * 40
    # A run of weights across the end of a chunk. Tokens that move keep their weights.
    for before in range(60, 76, 3):
        yield f"{words(before)}, ({words(4)}, {words(10)}:1.3) [{words(10)}]"
        yield f"{words(before)} (({words(3)})), {words(20)} BREAK {words(5)}, {words(80)}"
    while True:
        parts = []
        for _ in range(rng.randint(1, 40)):
            text = words(rng.randint(1, 12))
            match rng.randrange(9):
                case 0:
                    text = f"({text}:{rng.choice(['1.3', '0.5', '1', '0', '-1', '2.05'])})"
                case 1:
                    text = f"(({text}))"
                case 2:
                    text = f"[{text}]"
                case 3:
                    text = rng.choice(["supercalifragilistic", "\U0001f98a\U0001f98a", "caf\u00e9", "\u732b\u3068\u72d0", "it's", "\\(x\\)", "<|endoftext|>", "A B"])
            parts.append(text)
        yield "".join(part + rng.choice([", ", ", ", ",", " ", " ", " BREAK ", "\n", ". "]) for part in parts)


def webui(folder):
    """Loads WebUI's class without the rest of the program."""
    settings = types.SimpleNamespace(emphasis="Original", comma_padding_backtrack=20)
    torch = types.ModuleType("torch")
    torch.nn = types.SimpleNamespace(Module=object)
    modules = types.ModuleType("modules")
    shared = types.ModuleType("modules.shared")
    shared.opts = settings
    sys.modules |= {"torch": torch, "modules": modules, "modules.shared": shared}
    for name in ["devices", "sd_hijack", "sd_emphasis"]:
        setattr(modules, name, types.SimpleNamespace(StableDiffusionModelHijack=None))

    def load(name):
        module = types.ModuleType(name)
        path = Path(folder) / f"modules/{name}.py"
        exec(compile(path.read_text(encoding="utf-8"), path, "exec"), module.__dict__)
        return module

    modules.prompt_parser = load("prompt_parser")
    return load("sd_hijack_clip").FrozenCLIPEmbedderWithCustomWordsBase


def embedder_of(folder, tokenizer, database):
    """Returns WebUI's class with `tokenizer` and a database of textual inversions."""

    class Embedder(webui(folder)):
        def __init__(self):
            self.hijack = types.SimpleNamespace(embedding_db=database)
            self.chunk_length = LENGTH - 2
            self.id_start, self.id_end, self.comma_token = BOS, EOS, tokenizer.get_vocab()[",</w>"]

        def tokenize(self, texts):
            return [tokenizer(text, add_special_tokens=False, truncation=False).input_ids for text in texts]

    return Embedder()


def row_of(prompt, chunks):
    row = [prompt]
    for chunk in chunks:
        ids, weights = chunk.tokens, chunk.multipliers
        assert len(ids) == len(weights) == LENGTH and ids[0] == BOS and ids[-1] == EOS
        used = LENGTH
        while used > 2 and ids[used - 2] == EOS and weights[used - 1] == weights[used - 2] == 1.0:
            used -= 1
        runs = []
        for weight in map(repr, weights[:used]):
            if runs and runs[-2] == weight:
                runs[-1] += 1
            else:
                runs += [weight, 1]
        row += [ids[:used], runs]
    return row


def main():
    tokenizer = CLIPTokenizer.from_pretrained(HERE.parents[2] / "examples/models/emoji/tokenizer")
    none = types.SimpleNamespace(find_embedding_at_position=lambda tokens, position: (None, None))
    embedder, rows = embedder_of(sys.argv[1], tokenizer, none), []
    for prompt in prompts():
        if len(rows) == 200:
            break
        rows.append(row_of(prompt, embedder.tokenize_line(prompt)[0]))
    with open(HERE / "chunks.json", "w", encoding="ascii") as file:
        file.write('{"prompts":[\n' + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "\n]}\n")
    counts = [(len(row) - 1) // 2 for row in rows]
    print(f"{len(rows)} prompts, {sum(counts)} chunks, at most {max(counts)}")


if __name__ == "__main__":
    main()
