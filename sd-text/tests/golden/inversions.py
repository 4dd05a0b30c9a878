"""Writes inversions.json, the positions of textual inversions that `tests/inversions.rs` expects.

    pip install -r requirements.txt lark==1.1.2 && python inversions.py STABLE_DIFFUSION_WEBUI

The argument is a checkout of AUTOMATIC1111/stable-diffusion-webui (AGPL-3.0; it stays outside this
repository). As in `chunks.py`, its own `tokenize_line` is run. Names are looked up by their tokens,
the longest name first, as `EmbeddingDatabase` does. WebUI writes the id 0 for every vector. 0 is
also the id of `!`, so no prompt here has a `!`.

The rows are as in chunks.json. The names in `words` are words of the vocabulary, which they
replace.
"""

import itertools
import json
import random
import sys
import types

from chunks import HERE, LENGTH, WORDS, embedder_of, row_of
from transformers import CLIPTokenizer

# Names with the number of their vectors. Some names begin like others, and some have several words.
NAMES = {"EasyNegative": 8, "zorgmuster": 1, "foxling": 2, "foxling dawn": 3, "foxling dawn sky": 1, "<cat-toy>": 4, "badhandv4": 6, "zqvx": 75, "qxy-1": 16}
WORDS_AS_NAMES = {"tree": 2, "Fox": 1, "fox sky": 3, "sks": 74}


def prompts():
    rng = random.Random(7)

    def words(count):
        return " ".join(rng.choice(WORDS) for _ in range(count))

    yield from NAMES
    yield from [name.upper() for name in NAMES]
    yield from [f"({name}:1.2), fox" for name in NAMES]
    yield from [f"a{name}b {name}, {name}. {name}{name}" for name in NAMES]
    yield from ["foxling dawn sky foxling dawn foxling", "foxling  DAWN\nsky", "foxling, dawn", "foxling (dawn:1.1) sky", "foxling BREAK dawn", "<cat-toy>, <cat-toy>", "< cat - toy >", "zorgmuster " * 80, "EasyNegative, " * 30, "zqvx zqvx", "fox zqvx owl", "zqvx, zqvx"]
    # At every distance from the end of a chunk, with and without a comma in reach.
    for before in range(60, 77):
        yield f"{words(before)} easynegative {words(10)}"
        yield f"{words(before - 10)}, {words(8)}, badhandv4 {words(20)}"
        yield f"{words(60)}, foxling dawn {words(before - 62)} fox (foxling dawn sky:1.3) {words(20)}"
    while True:
        parts = [rng.choice([words(rng.randint(1, 8)), rng.choice([*NAMES, "qxy-1"]), f"({rng.choice([*NAMES])}:0.7)"]) for _ in range(rng.randint(1, 30))]
        yield "".join(part + rng.choice([", ", " ", " ", ",", " BREAK "]) for part in parts)


def prompts_of_words():
    yield from ["tree", "TREE", "a tree house", "trees", "treefox", "street tree.", "tree,", "tree, owl", "(tree:1.3) [fox]", "fox sky", "fox  SKY tree", "fox, sky", "foxes sky", "sks", "a sks fox", "sks tree", "tree " * 80, "owl " * 74 + "tree", "owl " * 60 + ", " + "fox " * 20]
    rng = random.Random(8)
    for _ in range(21):
        yield "".join(rng.choice([*WORDS, *WORDS_AS_NAMES, "tree"]) + rng.choice([", ", " ", " ", ",", " BREAK "]) for _ in range(rng.randint(1, 60)))


class Vectors:
    def __init__(self, name, vectors):
        self.name, self.vectors = name, vectors


def rows_of(tokenizer, vectors, prompts):
    names = [(tokenizer(name, add_special_tokens=False).input_ids, Vectors(name, count)) for name, count in vectors.items()]
    names.sort(key=lambda entry: -len(entry[0]))

    def find(tokens, position):
        for ids, vectors in names:
            if tokens[position:position + len(ids)] == ids:
                return vectors, len(ids)
        return None, None

    embedder = embedder_of(sys.argv[1], tokenizer, types.SimpleNamespace(find_embedding_at_position=find))
    rows = [row_of(prompt, embedder.tokenize_line(prompt)[0]) for prompt in prompts]
    assert all(len(ids) <= LENGTH for row in rows for ids in row[1::2])
    places = sum(id == 0 for row in rows for ids in row[1::2] for id in ids)
    print(f"{len(rows)} prompts, {places} vectors")
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    return f'{{"names":{json.dumps(vectors)},\n"prompts":[\n{lines}\n]', places


def main():
    tokenizer = CLIPTokenizer.from_pretrained(HERE.parents[2] / "examples/models/emoji/tokenizer")
    several, places = rows_of(tokenizer, NAMES, itertools.islice(prompts(), 200))
    assert places > 2000
    words, places = rows_of(tokenizer, WORDS_AS_NAMES, prompts_of_words())
    assert places > 500
    with open(HERE / "inversions.json", "w", encoding="ascii") as file:
        file.write(f'{several},\n"words":{words}}}}}\n')


main()
