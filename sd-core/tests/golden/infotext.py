"""Writes infotext.json: infotexts as WebUI's parser reads them, and values as WebUI quotes them.

    python infotext.py modules/infotext_utils.py

The argument is the path of that file of AUTOMATIC1111's stable-diffusion-webui, which is not copied
here, at commit ef83f6831fd747fea4d0fa638fe5ffb71aaa5b0f (April 2024) or
c19d04436496ab29ddca4758a792831ae41b31de (1.10). Both give the same result. The modules that the file
imports are stubbed, WebUI's options have their defaults, and the values that WebUI adds for missing
keys are left out. Written with Python 3.11.
"""

import importlib.util
import json
import pathlib
import sys
from unittest import mock

STUBBED = ["gradio", "modules", "modules.paths", "PIL"]

TAIL = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 965400086, Size: 512x512, Model hash: 45dee52b"

TEXTS = [
    # As WebUI writes them.
    "a fox\n" + TAIL,
    "a fox\nNegative prompt: blurry, (bad:1.2)\n" + TAIL,
    TAIL,
    "Negative prompt: blurry\n" + TAIL,
    "line one\nline two\nNegative prompt: bad\nworse\n" + TAIL,
    "a fox\nSteps: 28, Sampler: DPM++ 2M Karras, CFG scale: 5.5, Seed: 1, Size: 768x512, Model hash: 6ce0161689, "
    "Model: v1-5-pruned, Clip skip: 2, ENSD: 31337, RNG: CPU, Version: v1.6.0",
    "a fox\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Automatic, CFG scale: 7, Seed: 3, Size: 64x64, "
    "Lora hashes: \"a: 1234, b: 5678\", Hires prompt: \"one,\\ntwo: \\\"three\\\"\", Version: v1.10.1",
    # No last line.
    "",
    "   \n \t ",
    "a fox",
    "a fox\nNegative prompt: blurry",
    "Steps: 20, Sampler: Euler",
    "a fox\nSteps: 20, Sampler: Euler",
    "a fox, style: oil, mood: calm, light: soft",
    "a fox\na: 1, b: 2, c: 3",
    "a fox\naa: 1, bb: 2, cc: 3",
    # Lines of the prompt.
    "  a fox  \n  two \n\n three\n" + TAIL,
    "\n\n a fox\n" + TAIL,
    "a\n\n\nb\nNegative prompt:\n\nc\n" + TAIL,
    "a\nNegative prompt: b\nNegative prompt: c\n" + TAIL,
    "a\n Negative prompt:b\n" + TAIL,
    "a\nnegative prompt: b\n" + TAIL,
    "a\rb\r\nc\n" + TAIL,
    "a\u0085b\u2028c\u00a0\n" + TAIL,
    "\x1ca\x1f\n\x1dNegative prompt: \x1eb\n" + TAIL,
    "\u200ba\u200b\n\ufeffb\n" + TAIL,
    "a\n" + TAIL + "\nnot the last line",
    "a\n" + TAIL + "\n\n  ",
    "a\n" + TAIL + "\n" + TAIL.replace("20", "21"),
    # Entries.
    "a\nSteps:20,Sampler:Euler,CFG scale:7",
    "a\nSteps: 20,, Sampler: Euler, CFG scale: 7",
    "a\nSteps: , Sampler: Euler, CFG scale: 7",
    "a\nSteps: 20, Sampler: Euler, CFG scale:",
    "a\nSteps: \"\", Sampler: \"\"x, CFG scale: \"a\" b, Seed: \"a\"b\"",
    "a\nSteps: \"20\", Sampler: \"Euler, \\u0061 \\\\ \\/\", CFG scale: 7",
    "a\nSteps: \"20, Sampler: Euler, CFG scale: 7, Seed: 1",
    "a\nSteps: \"a\\, Sampler: Euler\", CFG scale: 7, Seed: 1, Size: 8x8",
    "a\nSteps: \"\\x\", Sampler: \"a\tb\", CFG scale: \"\\ud83e\\udd8a\", Seed: \"🦊, 狐\"",
    "a\nSteps: 20, Steps: 21, Sampler: Euler, Sampler: Heun",
    "a\nSize: 512x768, Size: 1, Mask size: 3x4x5, First: 12X3, Other: 5x",
    "a\nSize: \"512x768\", Seed: \"1x2\\n\", Steps: 1",
    "a\nSize: ５１２x٣, Steps: 1, Seed: 2",
    "a\nkey/with-all 0_: 1, --no: 2, two words:3, x: 4, 鍵鍵: 5, é1: 6",
    "a\nA: 1, B: 2, CC: 3, DD: 4",
    "a\nnot an entry, Steps: 1, neither, Seed: 2, Sampler: Euler trailing words",
    "a\nSteps: 20 , Sampler:  Euler  , CFG scale: 7  ",
    "a\nTime: 12:30:45, Url: https://x.y/z, Steps: 1",
    "a\nHashes: {\"vae\": \"c6a580b13a\", \"model\": \"6ce0161689\"}, Steps: 1, Seed: 2",
    "a\nSteps: 1,\u2003Seed:\u00a02,\x1cSampler:\x1fEuler",
    "a\nNegative prompt: b, Steps: 1, Seed: 2, Prompt: c",
    "a\nVersion: sd-onnx 0.1.0, SD prompt: \" a\\n\\u0000\", SD ladder: \"{\\\"karras\\\":{\\\"rho\\\":5.0,\\\"over\\\":null}}\"",
]

VALUES = [
    "a", "", "a b", "7.5", "512x512", "a,b", "a: b", "a\nb", "a, \"b\"", "a,\\", ",\t\r\b\f\0\x1f\x7f", "狐, 🦊", "é:\u0085\u2028",
    "a\"b", "</script>,", "'a', 'b'",
]


def webui(path):
    for name in STUBBED:
        sys.modules[name] = mock.MagicMock()
    modules = sys.modules["modules"]
    options = modules.shared.opts
    options.infotext_skip_pasting = []
    options.infotext_styles = "Ignore"
    options.use_old_hires_fix_width_height = False
    modules.prompt_parser.parse_prompt_attention.return_value = []
    spec = importlib.util.spec_from_file_location("infotext_utils", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def main():
    module = webui(sys.argv[1])
    prompts = ("Prompt", "Negative prompt")
    cases = []
    for text in TEXTS:
        parsed = module.parse_generation_parameters(text)
        # WebUI splits a size into two values.
        there = {k: v for k, v in parsed.items() if k in prompts or k in text or k.removesuffix("-1").removesuffix("-2") in text}
        cases.append({"text": text, "parsed": there})
    golden = {
        "source": "AUTOMATIC1111/stable-diffusion-webui ef83f6831fd747fea4d0fa638fe5ffb71aaa5b0f",
        "parsed": cases,
        "quoted": [[value, module.quote(value)] for value in VALUES],
    }
    target = pathlib.Path(__file__).with_suffix(".json")
    target.write_text(json.dumps(golden, indent=1, ensure_ascii=True) + "\n")
    print(len(cases), "texts,", len(VALUES), "values")


main()
