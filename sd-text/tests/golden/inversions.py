"""Writes inversions.json, what `tests/inversions.rs` compares the places of textual inversions in a prompt with.

    pip install -r requirements.txt lark==1.1.2 && python inversions.py STABLE_DIFFUSION_WEBUI

The argument is a checkout of AUTOMATIC1111/stable-diffusion-webui (AGPL-3.0; it stays outside of this repository). Its own
`tokenize_line` is run, as in `chunks.py`, over names that are looked up by their tokens, of several the longest, as
`EmbeddingDatabase` does it. WebUI writes the id 0 in the place of every vector; no prompt here has a `!`, whose id that is.

Each row is as in chunks.json.
"""

import json
import random
import sys
import types

from chunks import HERE, LENGTH, WORDS, embedder_of, row_of
from transformers import CLIPTokenizer

# Names and how many vectors they have. Some begin as others do, some are of several words.
NAMES = {"EasyNegative": 8, "zorgmuster": 1, "foxling": 2, "foxling dawn": 3, "foxling dawn sky": 1, "<cat-toy>": 4, "badhandv4": 6, "zqvx": 75, "qxy-1": 16}


def prompts():
    rng = random.Random(7)

    def words(count):
        return " ".join(rng.choice(WORDS) for _ in range(count))

    yield from NAMES
    yield from [name.upper() for name in NAMES]
    yield from [f"({name}:1.2), fox" for name in NAMES]
    yield from [f"a{name}b {name}, {name}. {name}{name}" for name in NAMES]
    yield from ["foxling dawn sky foxling dawn foxling", "foxling  DAWN\nsky", "foxling, dawn", "foxling (dawn:1.1) sky", "foxling BREAK dawn", "<cat-toy>, <cat-toy>", "< cat - toy >", "zorgmuster " * 80, "EasyNegative, " * 30, "zqvx zqvx", "fox zqvx owl", "zqvx, zqvx"]
    # At every distance from the end of a chunk, with a comma in reach and without.
    for before in range(60, 77):
        yield f"{words(before)} easynegative {words(10)}"
        yield f"{words(before - 10)}, {words(8)}, badhandv4 {words(20)}"
        yield f"{words(60)}, foxling dawn {words(before - 62)} fox (foxling dawn sky:1.3) {words(20)}"
    while True:
        parts = [rng.choice([words(rng.randint(1, 8)), rng.choice([*NAMES, "qxy-1"]), f"({rng.choice([*NAMES])}:0.7)"]) for _ in range(rng.randint(1, 30))]
        yield "".join(part + rng.choice([", ", " ", " ", ",", " BREAK "]) for part in parts)


class Vectors:
    def __init__(self, name, vectors):
        self.name, self.vectors = name, vectors


def main():
    tokenizer = CLIPTokenizer.from_pretrained(HERE.parents[2] / "examples/models/emoji/tokenizer")
    names = [(tokenizer(name, add_special_tokens=False).input_ids, Vectors(name, count)) for name, count in NAMES.items()]
    assert all(len(ids) > 1 for ids, _ in names)
    names.sort(key=lambda entry: -len(entry[0]))

    def find(tokens, position):
        for ids, vectors in names:
            if tokens[position:position + len(ids)] == ids:
                return vectors, len(ids)
        return None, None

    embedder = embedder_of(sys.argv[1], tokenizer, types.SimpleNamespace(find_embedding_at_position=find))
    rows = []
    for prompt in prompts():
        if len(rows) == 200:
            break
        rows.append(row_of(prompt, embedder.tokenize_line(prompt)[0]))
    places = sum(id == 0 for row in rows for ids in row[1::2] for id in ids)
    assert all(len(ids) <= LENGTH for row in rows for ids in row[1::2]) and places > 2000
    with open(HERE / "inversions.json", "w", encoding="ascii") as file:
        lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
        file.write(f'{{"names":{json.dumps(NAMES)},\n"prompts":[\n{lines}\n]}}\n')
    print(f"{len(rows)} prompts, {places} vectors")


main()
