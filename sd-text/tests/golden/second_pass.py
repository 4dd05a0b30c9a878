"""Makes `second_pass.json`: what schedules mean in the second pass of WebUI's "Hires. fix".

    pip install lark==1.1.2 && python second_pass.py WEBUI

WEBUI is a folder with `modules/prompt_parser.py` of stable-diffusion-webui 1.10.1 (commit
82a973c04367123ae98bd9abdf80d9eda9b910e2), which is not run otherwise. The file has a row for each
text: the text, and for each pair of steps the entries `[end, text, …]`.
"""

import hashlib
import json
import sys
import types
from pathlib import Path

HERE = Path(__file__).parent
SHA256 = "27b25c780002fbb087b8cdc464077c5ca3874e47e2632085796c8fd5c338133d"
PAIRS = [(20, 20), (20, 7), (7, 30), (1, 1)]
TEXTS = [
    "a fox", "[fox:owl:0.5]", "[fox:owl:1.0]", "[fox:owl:1.5]", "[fox:owl:1.25] in [day:night:0.25]",
    "[fox:owl:2.0]", "[fox:owl:3.5]", "[fox:owl:5]", "[fox:owl:20]", "[fox:owl:21]", "[fox:owl:25]",
    "[fox:owl:400]", "[fox:owl:-1]", "[fox:owl:1]", "[fox:owl:0]", "[fox::1.3]", "[owl:1.3]",
    "[fox|owl]", "[fox|owl|bear] [day:night:1.5]", "[[fox:owl:1.2]:bear:1.6]",
    "[fox:[owl:bear:1.6]:1.2]", "(fox:1.2) [a:b:22]", "[a:b:1.05]", "[a:b:1.999]", "[a:b:1.]",
]  # fmt: skip


def main():
    path = Path(sys.argv[1]) / "modules/prompt_parser.py"
    source = path.read_bytes()
    found = hashlib.sha256(source).hexdigest()
    assert found == SHA256, found
    sys.modules.setdefault("torch", types.ModuleType("torch"))
    module = {"__name__": "prompt_parser"}
    exec(compile(source, path, "exec"), module)
    parse = module["get_learned_conditioning_prompt_schedules"]
    rows = []
    for text in TEXTS:
        schedules = [parse([text], base, hires)[0] for base, hires in PAIRS]
        rows.append([text, *([x for entry in schedule for x in entry] for schedule in schedules)])
    lines = ",\n".join(json.dumps(row) for row in rows)
    with open(HERE / "second_pass.json", "w", encoding="ascii") as file:
        file.write(f'{{"pairs": {json.dumps(PAIRS)}, "rows": [\n{lines}\n]}}\n')


main()
