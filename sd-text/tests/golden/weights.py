"""Writes weights.json, the weights of ComfyUI and compel that `tests/weights.rs` expects.

    pip install --no-deps compel==2.5.1 && pip install pyparsing==3.3.3 && python weights.py COMFYUI

The argument is a checkout of ComfyUI (GPL-3.0; it stays outside this repository). Four functions of
its `comfy/sd1_clip.py` are run, and the prompt parser of compel (MIT). The prompts are made below.

Each row is [prompt, [text, weight, …] as ComfyUI reads it, [text, weight, …] as compel reads it].
The last is 0 if compel fails or finds operators other than weights.
"""

import ast
import importlib.util
import json
import random
import sys
from importlib.metadata import distribution
from pathlib import Path

HERE = Path(__file__).parent
WORDS = ["fox", "red hill", "a-b", "x", "caf\u00e9", "\u732b", "f/1.8", "3d", "sky,", "1girl"]

HANDWRITTEN = [
    "", " ", "fox", "(fox)", "((fox))", "(((fox)))", "(fox:1.3)", "((fox:1.3))", "(a (fox:1.3) b)", "(a (fox) b:1.5)", "(fox:1.3", "fox:1.3)", "(fox", "fox)", ")fox(", ")(fox)", "()", "(:1.3)", "(a:b)", "(a:b:1.3)", "(a: 1.3 )", "(a:1e1)", "(a:-1)", "(a:.5)", "(a:1.)",
    "((a) (b)", "((a)", "(((a) b) c", "(a))(b)", "a) (b) (c)", "a) ((b))", "\\(fox\\)", "(fox\\)", "\\(fox)", "(\\(fox\\):1.2)", "(fox\\):1.2)", "[fox]", "([fox]:1.2)", "(a:1.2)(b:0.8)", "a (b) c", "(a)(b)", "(:)", "(a:)", "\\\\(a)", "(a:1.2) :1.3",
    "fox+", "fox++", "fox-", "fox---", "a fox+ b", "(a fox)+", "(a fox)1.3", "(a fox)-", "(a fox)--", "(a fox) +", "(a fox) 1.3", "(a (b)+ c)+", "(a (b)1.5 c)0.5", "a-b", "a-b+", "a+b", "a+b+", "fox+,owl", "fox,owl+", "fox+ owl+", "fox+ owl", "x+.", "(x+)+", "((x))+", "((x)+)", "\"a fox\"+", "\"a fox\"1.2",
    "\"a fox\"", "a \"b", "(a = b)+", "a = b", "(a - b)+", "a - b", "-fox", "+fox", "fox +", "f1.8+", "f1.8", "(f1.8)+", "\\(x\\)", "\\(x\\)+", "(\\(x\\))+", "x\\+", "man(child)", "man(child)+", "(a, b. c)+", "(a,b)1.1 c", "(a)+1.5", "(a).5", "(a)-0.5", "(a)-5", "(a)5", "x+-", "x-+", "x++y+", "()+", "( )+", "(a", "a)", "((a)+",
    "x.attend(1.3)", "(a b).attend(++)", "(a b).attend(-)", "a, b+, c--", "(\u732b caf\u00e9)1.2 x", "(a\nb)+ c", "two\nlines+", "a\tb+",
]  # fmt: skip


def generated(rng):
    def piece(depth):
        word = rng.choice(WORDS)
        if depth == 0 or rng.random() < 0.3:
            return word
        inner = " ".join(piece(depth - 1) for _ in range(rng.randint(1, 3)))
        weight = rng.choice(["1.3", "0.5", "2", ".8"])
        return rng.choice([f"({inner})", f"(({inner}))", f"({inner}:{weight})", f"({inner}){weight}", f"({inner})+", f"({inner})--", f"{word}+", f"{word}--", f"\\({inner}\\)", f"[{inner}]", f"{inner}, {word}"])

    text = rng.choice([" ", ", "]).join(piece(rng.randint(1, 3)) for _ in range(rng.randint(1, 4)))
    if rng.random() < 0.25:
        place = rng.randrange(len(text) + 1)
        text = text[:place] + rng.choice("()+-\\:, ") + text[place:]
    return text


def main():
    path = Path(sys.argv[1]) / "comfy/sd1_clip.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [n for n in tree.body if getattr(n, "name", "") in ("parse_parentheses", "token_weights", "escape_important", "unescape_important")]
    comfy = {}
    exec(compile(tree, path, "exec"), comfy)
    # Without compel's own __init__, which needs torch.
    file = distribution("compel").locate_file("compel/prompt_parser.py")
    spec = importlib.util.spec_from_file_location("prompt_parser", file)
    compel = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(compel)
    parser = compel.PromptParser()

    def by_comfy(prompt):
        pairs = comfy["token_weights"](comfy["escape_important"](prompt), 1.0)
        return [x for text, weight in pairs for x in (comfy["unescape_important"](text), repr(float(weight)))]

    def by_compel(prompt):
        try:
            parts = parser.parse_conjunction(prompt)
            if len(parts.prompts) != 1 or type(parts.prompts[0]) is not compel.FlattenedPrompt or parts.lora_weights or parts.weights != [1.0]:
                return 0
            fragments = parts.prompts[0].children
            return [x for fragment in fragments for x in (fragment.text, repr(fragment.weight))]
        except Exception:
            return 0

    rng, prompts = random.Random(11), dict.fromkeys(HANDWRITTEN)
    while len(prompts) < 400:
        prompts[generated(rng)] = None
    rows = [[prompt, by_comfy(prompt), by_compel(prompt)] for prompt in prompts]
    with open(HERE / "weights.json", "w", encoding="ascii") as file:
        file.write("[\n" + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "\n]\n")
    print(f"{len(rows)} prompts, {sum(row[2] != 0 for row in rows)} of them compel's too")


main()
