"""Writes prompts.json, the results that `tests/prompts.rs` expects of the prompt language.

    pip install lark==1.1.2 && python prompts.py STABLE_DIFFUSION_WEBUI

The argument is a checkout of AUTOMATIC1111/stable-diffusion-webui. It is licensed under the
AGPL-3.0, so it stays outside this repository, and none of its code is copied here. The prompt
parser came from commit 28bd8e142d5f77b71ae8d7d7140b5da1b3a49906. The functions for comments and
extra networks came from version 1.9.3. A seeded generator makes the prompts below. Each prompt
goes through WebUI's own functions in WebUI's order:

1. comments
2. extra networks, in positive prompts only
3. AND, in positive prompts only
4. schedule for 1, 7 and 20 steps
5. attention of every text

If a bracket belongs to no construct, WebUI's grammar is ambiguous, and lark chooses a reading by
the hashes of strings. Python seeds these anew in every process, so the same prompt can mean
different things after a restart. Every text is therefore read with many hash seeds, and all
readings are stored.

The file stores nothing twice:

- `texts`: every text that any schedule shows, with its attention: 0 if that is the text itself at
  weight 1, "error" if WebUI fails on it, otherwise [text, weight, text, weight, …] with weights as
  Python prints them.
- `branches`: every text from which a schedule is made, with its readings. A reading is
  [1 step, 7 steps, 20 steps], each [end, index of a text, end, index of a text, …], or "error".
- `prompts`: [prompt, [network, [arguments], …], [weight, branch, …], branch as a negative prompt].
- `calls`: [prompt, text of each model call with Euler, with Heun] at 20 steps, each as
  [text, number of calls, …].
"""

import ast
import collections
import copy
import json
import os
import random
import re
import subprocess
import sys
import types
from pathlib import Path

import lark

assert lark.__version__ == "1.1.2"

HERE = Path(__file__).parent
COUNT, STEPS, SEEDS, MORE_SEEDS = 2000, (1, 7, 20), 12, 96

WORDS = ["fox", "owl", "red hill", "sky", "a", "blue ", " moss", "old tree, snow", "\u732b", "caf\u00e9", "\U0001f98a", "b c", "x", "1girl", "3d", "brand", "AND1", "unBREAKable", "e\u0301t\u00e9", "\u00a0wide", "tab\there", "two\nlines"]
NUMBERS = ["3", "0.5", ".5", "5.", "1", "1.0", "0", "-2", "+4", "0.25", "19", "20", "21", "1e0", "1.5e-1", "0.999", "-.5", "00.3", "2.0", " 4", "0.7 ", "\n2\t", "7", "6.99", "1E+1"]
WEIGHTS = ["1.3", "0.5", "1", ".8", "2", "-1", "+1.2", " 1.1 ", "0", "1.21", "1.05", "0.9090909"]


def constructs(inner, rng):
    """Returns one construct of each kind around `inner`."""
    word, other = rng.choice(WORDS), rng.choice(WORDS)
    number, weight = rng.choice(NUMBERS), rng.choice(WEIGHTS)
    return [
        f"({inner})",
        f"(({inner}))",
        f"[{inner}]",
        f"({inner}:{weight})",
        f"({word} [{inner}] {other}:{weight})",
        f"[{inner}:{word}:{number}]",
        f"[{word}:{inner}:{number}]",
        f"[{inner}:{number}]",
        f"[{inner}::{number}]",
        f"[{inner}|{word}]",
        f"[{word}|{inner}|{other}]",
        f"[|{inner}]",
        f"[{inner}||]",
        f"\\({inner}\\)",
        f"\\[{word}{inner}\\] \\\\",
        f"{inner} BREAK {word}",
        f"{word} BREAK{inner}",
        f"{inner} AND {word}",
        f"{word} AND {inner} :{weight}",
        f"{inner} # {word}\n{other}",
        f"{word}\n#{inner}\n{other}",
        f"<lora:{word}:{weight}>{inner}",
        f"{inner}<hypernet:{inner}>",
        f"({inner}:[{weight}:0.5:{number}])",
    ]


def pairs(rng):
    """Yields every construct inside every other."""
    for inner in constructs("fox", random.Random(1)):
        for outer in constructs(inner, rng):
            yield outer


def nested(rng):
    def piece(depth):
        if depth == 0 or rng.random() < 0.3:
            return rng.choice(WORDS)
        parts = [piece(depth - 1) for _ in range(rng.randint(1, 2))]
        return rng.choice(constructs(rng.choice(["", " ", ", "]).join(parts), rng))

    return rng.choice(["", " ", ", "]).join(piece(rng.randint(1, 3)) for _ in range(rng.randint(1, 3)))


def damaged(rng):
    """Returns a nested prompt with a few characters removed, duplicated or inserted."""
    text = list(nested(rng)[:60])
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(text) + 1)
        match rng.randrange(3):
            case 0 if text:
                del text[min(place, len(text) - 1)]
            case 1 if text:
                text.insert(place, rng.choice(text))
            case _:
                text.insert(place, rng.choice("()[]:|\\#<>"))
    return "".join(text)


def garbage(rng):
    alphabet = list("()[]:|\\") * 3 + ["a", "b", " ", "1", ".", "-", "5", "BREAK", "AND", "\n", "#", "<", ">", "lora:", "\u00e9", "e", "[a:", "|b]", ":3]", ":0.5]", ":1.2)"]
    return "".join(rng.choice(alphabet) for _ in range(rng.randint(1, 14)))


HANDWRITTEN = [
    "", " ", "\n", "fox", "|", "a|b", "(a|b)", "[cat:dog:0.5] | x", "a\\", "\\", "a\\\nb", "[a:b:3]\\", "[a::b:3]", "[a:b:c:0.5]", "[a:b:1]", "[a:b:1.0]", "[|a]", "[a|]", "[|]", "[||]", "[]", "()", "(:)", "[:]", "[::]",
    "[:3]", "[::3]", "[a:b: 3 ]", "[a:b:3 4]", "[(a:b):c:3]", "[(a:b:c):d:3]", "[a|b:c:3]", "[a:b|c]", "[[a|b]:c:3]", "[a:[b|c]:3]", "[[a|b]|c]", "[a\\:b:3]", "[a\\]:b:3]", "\\[a:b:3]", "[a\\|b|c]", "((((", "))))", "[[[[", "]]]]", "(((a)",
    "[((a:2)):3]", "(a:[1.2:1.5:0.5])", "[fe|]male", "[BREAK:fox:3]", "BR[EAK:x:3]", "(BREAK)", "(BREAK:1.5)", "[BREAK]", "(a BREAK b:1.2)", "(BREAK:0)", "(BREAK:-1)", "BREAK BREAK", "BREAKBREAK", "xBREAK", "BREAK_", "a\\BREAK", "BREAK",
    "AND", "AND AND", "a AND b", "aANDb", "a AND", "AND b", "(a AND b)", "[a AND b:3]", "[a:b AND c:3]", "a:1 AND b:2", "a :1.5", "a: 1.5 ", "a:1.5 AND b :-0.5 AND c", "a AND b:.5", "a AND b:5.", "a AND b:1e3", "a AND b:x", "a AND b::2", "AND_", "a and b",
    "a\n AND\n b", "a AND b \n", "x (a:1.2", "x [a:b:3", "a AND (b:1.2)", "a AND [b:c:3]:2", ":2", " : 2 ", "a:2:3", "A<lora:x:1>ND b", "a A<lora:x:1>ND b", "a AND<lora:x:1>b", "# all", "a # b", "a\n# b\nc", "#a\n#b\n", "#a\n#b", "a#", "#", "a\n#", "\n#\n", "x#y\n#z\nw", "##\n##",
    "<lora:a:1>", "<lora:a>", "<lora::1>", "<lora:>", "<:a>", "<lora a:1>", "<l-ora:a:1>", "<lora:a:1", "lora:a:1>", "<<lora:a:1>>", "<lora:a:1><lora:b:2>", "<lora:a b:0.5:te=1>", "<lora:a#b\n:1>", "[a<lora:x:1>:b:3]", "[a:b:<lora:x:1>3]", "[a:b:3<lora:x:1>]", "<lora:[a:b:3]>",
    "<l\u00f6ra:a>", "<_:a>", "<1:2:3>", "(a:1.2) (b:1.2)", "(a:1.1)(b)", "((a))(b:1.21)", "(((a)))", "(a [b) c]", "[a (b] c)", "(a:1.3", "a:1.3)", "(a:1.3))", "(a: 1.3 )", "(a:\n1.3)", "(a:+1.3)", "(a:1.3x)", "(a:)", "(a:b)", "(a:b:1.3)", "(a\\:1.3)", "(a\\)", "\\(a:1.3\\)",
    "(a::1.3)", "(:1.3)", "[a:1.3]", "[a:1.3)", "(a:1..3)", "(a:.)", "(a:0)", "((a:0):3)", "((a:0) b:0)", "a (b:1) c", "[(a)]", "([a])", "((a) [b] c)", "\\\\(a)", "\\\\\\(a\\\\\\)", "\\n", "\\(", "(\\", "a,b , c", "[a:b:1e400.]", "[a:b:99999999999999999999]", "[a:b:1e5]",
    "((a][:b:c [d:3]", "[a:b:3]]", "[[a:b:3]", "[a|b]]", "[[a|b]", "[a|b", "a|b]", "[a|b]|", "[a [b] c|d]", "[a (b) c|d (e:1.2)]", "[a (b c|d]", "[a b) c|d]", "[a:b:0.5] [c:d:0.75] [e|f]", "[[[a:b:3]:c:5]:d:8]", "[a:[b:[c:d:8]:5]:3]", "[[a::3]|[b::5]]", "[a|[b|[c|d]]]",
    "\u3000[a:b:3]\u3000", "[a:b:\u30003\u3000]", "[a:b:\x1c3]", "\x1f:2", "a\x1fBREAK\x1fb", "\ufeff", "\u200b[a|b]", "a\rb", "[a:b:3]\r\n", "# x\r\ny",
]  # fmt: skip


def prompts():
    rng = random.Random(20261)
    found = dict.fromkeys([*HANDWRITTEN, *pairs(rng)])
    makers = [nested] * 4 + [damaged] * 3 + [garbage] * 3
    while len(found) < COUNT:
        text = rng.choice(makers)(rng)
        # Python reads non-ASCII digits as numbers. This difference is documented and not tested.
        if not any(c.isdecimal() and not c.isascii() for c in text):
            found[text] = None
    return list(found)


def load(path, names=None):
    """Loads the functions of a module, or only the named ones, without the rest of the program."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if names:
        tree.body = [n for n in tree.body if getattr(n, "name", None) in names or (isinstance(n, ast.Assign) and n.targets[0].id in names)]
    module = {"__name__": path.stem, "re": re, "defaultdict": collections.defaultdict}
    exec(compile(tree, path, "exec"), module)
    return types.SimpleNamespace(**module), module


class WebUi:
    def __init__(self, folder):
        sys.modules.setdefault("torch", types.ModuleType("torch"))
        folder = Path(folder)
        self.parser, self.globals = load(folder / "modules/prompt_parser.py")
        self.comments, _ = load(folder / "modules/processing_scripts/comments.py", {"strip_comments"})
        self.networks, _ = load(folder / "modules/extra_networks.py", {"ExtraNetworkParams", "re_extra_net", "parse_prompt"})
        # Each text is parsed once. The tree is copied, because evaluating a tree changes it.
        lark_parser, trees = self.globals["schedule_parser"], {}

        def parse(text):
            if text not in trees:
                try:
                    trees[text] = lark_parser.parse(text)
                except lark.exceptions.LarkError as error:
                    trees[text] = error
            if isinstance(trees[text], Exception):
                raise trees[text]
            return copy.deepcopy(trees[text])

        self.globals["schedule_parser"] = types.SimpleNamespace(parse=parse)

    def prepare(self, prompt):
        whole = self.comments.strip_comments(prompt)
        text, networks = self.networks.parse_prompt(whole)
        found = [[name, params.items] for name, all in networks.items() for params in all]
        indexes, texts, _ = self.parser.get_multicond_prompt_list(self.parser.SdConditioning([text]))
        # WebUI removes extra networks from positive prompts only.
        return whole, text, found, [(weight, texts[index]) for index, weight in indexes[0]]

    def schedule(self, text, steps):
        return self.parser.get_learned_conditioning_prompt_schedules([text], steps)[0]

    def reading(self, text):
        try:
            return [self.schedule(text, steps) for steps in STEPS]
        except OverflowError:
            return "error"

    def attention(self, text):
        try:
            return self.parser.parse_prompt_attention(text)
        except ValueError:
            return "error"

    def calls(self, prompt, count, steps):
        """Returns the text of each model call, as WebUI chooses it from the schedule's entries."""

        class Embedding(str):
            device = dtype = None

        conditioning = self.parser.get_multicond_learned_conditioning(types.SimpleNamespace(get_learned_conditioning=lambda texts: [Embedding(t) for t in texts]), self.parser.SdConditioning([prompt]), steps)
        seen = []
        self.globals["stack_conds"] = lambda tensors: seen.append(str(tensors[0])) or types.SimpleNamespace(to=lambda **_: None)
        for step in range(count):
            self.parser.reconstruct_multicond_batch(conditioning, step)
        return seen


def worker(folder):
    """Reads the texts from standard input with this process's hash seed."""
    webui = WebUi(folder)
    json.dump([webui.reading(text) for text in json.load(sys.stdin)], sys.stdout)


def readings(folder, texts, seeds):
    for seed in seeds:
        run = subprocess.run([sys.executable, __file__, folder, "--worker"], input=json.dumps(texts), capture_output=True, text=True, check=True, env=os.environ | {"PYTHONHASHSEED": str(seed)})
        yield json.loads(run.stdout)


def folded(items):
    out = []
    for item in items:
        if out and out[-2] == item:
            out[-1] += 1
        else:
            out += [item, 1]
    return out


def main():
    folder = sys.argv[1]
    if "--worker" in sys.argv:
        return worker(folder)
    webui = WebUi(folder)
    prepared = {prompt: webui.prepare(prompt) for prompt in prompts()}
    branches = list(dict.fromkeys(text for whole, _, _, parts in prepared.values() for text in [*(t for _, t in parts), whole]))
    found = {text: [] for text in branches}

    def collect(texts, seeds):
        for answers in readings(folder, texts, seeds):
            for text, answer in zip(texts, answers):
                if answer not in found[text]:
                    found[text].append(answer)

    collect(branches, range(SEEDS))
    varying = [text for text in branches if len(found[text]) > 1]
    collect(varying, range(SEEDS, MORE_SEEDS))

    texts = {}

    def intern(text):
        return texts.setdefault(text, len(texts))

    def written(answer):
        return answer if answer == "error" else [[x for end, text in schedule for x in (end, intern(text))] for schedule in answer]

    rows = {
        "branches": [[text, *map(written, found[text])] for text in branches],
        "prompts": [[prompt, [x for network in networks for x in network], [x for weight, text in parts for x in (repr(weight), branches.index(text))], branches.index(whole)] for prompt, (whole, _, networks, parts) in prepared.items()],
        "calls": [],
    }
    certain = [p for p, (_, _, _, parts) in prepared.items() if len(parts) == 1 and all(len(found[t]) == 1 != "error" for _, t in parts) and len(webui.schedule(parts[0][1], 20)) > 1]
    for prompt in random.Random(2).sample(certain, 20):
        rows["calls"].append([prompt, *(folded(intern(t) for t in webui.calls(prepared[prompt][1], count, steps)) for count, steps in [(20, 20), (39, 40)])])
    attention = []
    for text in texts:
        pieces = webui.attention(text)
        attention.append([text, 0 if pieces == [[text, 1.0]] else pieces if pieces == "error" else [x for piece, weight in pieces for x in (piece, repr(weight))]])
    compact = {"separators": (",", ":"), "ensure_ascii": True}
    with open(HERE / "prompts.json", "w", encoding="ascii") as file:
        versions = {
            "lark": "1.1.2", "stable-diffusion-webui, prompt parser": "28bd8e142d5f77b71ae8d7d7140b5da1b3a49906",
            "stable-diffusion-webui, comments and extra networks": "1.9.3",
        }
        file.write('{"versions":' + json.dumps(versions, **compact) + ",\n")
        for name, items in [("texts", attention), *rows.items()]:
            file.write(f'"{name}":[\n' + ",\n".join(json.dumps(row, **compact) for row in items) + "\n]" + (",\n" if name != "calls" else "}\n"))
    print(f"{len(prepared)} prompts, {len(branches)} branches of which {len(varying)} vary with the hash seed, {len(texts)} texts")


main()
