"""Writes prompt_loras.json: LoRAs in prompts as WebUI and two of its extensions read them.

    python prompt_loras.py WEBUI LORACTL BLOCK_WEIGHT

The arguments are checkouts of three programs, which are not copied here:

- AUTOMATIC1111/stable-diffusion-webui 1.10.1 (82a973c04367123ae98bd9abdf80d9eda9b910e2)
- cheald/sd-webui-loractl (b48cf602b0c414a362726fa079a284f3ae6a51e2)
- hako-mikan/sd-webui-lora-block-weight (b403cb7300f288360023c2a1978b86a361934e24)

`SOURCES` pins the files. Everything that they import from WebUI is stubbed. Written with Python
3.11, numpy 2.4.6 and torch 2.15.0.

- `calls`: for each library, its files in the order of WebUI's list, each as
  [name, alias or null, hash], and prompts with what WebUI loads: null if it raises, or
  {"loaded": [[index, te, unet, dyn or null], ...], "missing": [name, ...], "hashes": text or null}.
- `pasted`: [prompt, "Lora hashes", prompt after it was pasted] for the last of these libraries.
- `schedules`: [arguments, steps, null if loractl raises or [te, [unet in each step]]].
- `blocks`: [arguments, steps, null if the script raises or [te, [unet in each step], 26 factors]].
"""

import ast
import hashlib
import json
import sys
import tempfile
import types
from pathlib import Path
from unittest import mock

HERE = Path(__file__).parent

SOURCES = {
    "webui/modules/extra_networks.py": "3584b75cf29098f7126a961b0ef437bd73d11b4e15505a5677630de395516d8c",
    "webui/extensions-builtin/Lora/extra_networks_lora.py": "e7760213744594e87a1b906ce3bfd123abc1a5dcc2b0f9f07c37a6c629080fb8",
    "webui/extensions-builtin/Lora/networks.py": "c527299c3fcb9d29fdb853d223ed60ab542dd8457220379234e4a6cb7d932414",
    "webui/extensions-builtin/Lora/network.py": "7806020e9fddebc359ae5d10dac12b5e94eb2533517bce73c578515dc8e80b0e",
    "webui/extensions-builtin/Lora/scripts/lora_script.py": "2277e11a00bb9b00f2915188e6fbe2d001c077737aca1c9c085e91363466e103",
    "loractl/loractl/lib/utils.py": "7cf436a24d64715b7f460dd3119946b5e30fe7345dd47bb86c6226c0ae2ae3a8",
    "block-weight/scripts/lora_block_weight.py": "801fcffc849f5a8b6e65bb884f87d6ebfe315efcccffbcb320f0de6972d1ba03",
}


def file_of(folders, name):
    program, _, path = name.partition("/")
    file = folders[program] / path
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    assert found == SOURCES[name], f"{file} is {found}, expected {SOURCES[name]}"
    return file


LIBRARIES = [
    # [name, alias in the file's metadata or None, hash], in the order of WebUI's list.
    [["ink", None, "1" * 64], ["Sepia tone", "sepia", "2" * 64], ["style,a", "style_a", "3" * 64]],
    # One alias twice; an alias that is the name of an earlier and of a later file; a name twice.
    [["a", "shared", "a" * 64], ["b", "Shared", "b" * 64], ["c", "Shared", "c" * 64], ["d", "a", "d" * 64],
     ["e", "f", "e" * 64], ["f", "g", "f" * 64], ["twin", None, "7" * 64], ["twin", "other", "8" * 64],
     ["h", "none", "9" * 64], ["i", "Addams", "0" * 64], ["none", "j", "5" * 64]],
    # For pasted infotexts.
    [["ink", None, "1" * 64], ["sepia-v2", "sepia two", "2" * 64], ["moss", "none", "3" * 64]],
]

CALLS = [
    ["", "<lora:ink>", "<lora:ink:0.5>", "<lora:ink:0.5:0.25>", "<lora:ink:0.5:0.25:4>", "<lora:ink:te=0.5>",
     "<lora:ink:unet=0.5>", "<lora:ink:0.5:unet=0.25>", "<lora:ink:0.5:te=0.25>", "<lora:ink:0.5:0.25:te=2>",
     "<lora:ink:unet=0.25:0.5>", "<lora:te=0.5:ink:0.25>", "<lora:ink:dyn=8>", "<lora:ink:1:1:4:dyn=8>",
     "<lora:ink:0.5:0.25: 1_0 >", "<lora:ink:te=0.5:unet=-0.25:dyn=2>", "<lora:ink: 0.5 >", "<lora:ink:1e-1>",
     "<lora:ink:.5>", "<lora:ink:5.>", "<lora:ink:1_0>", "<lora:ink:+1>", "<lora:ink:-1>", "<lora:ink:0>",
     "<lora:ink:x>", "<lora:ink:>", "<lora:ink:1,2>", "<lora:ink:te=>", "<lora:ink:te=x>", "<lora:ink:x:te=1>",
     "<lora:ink:te=1=2>", "<lora:ink:1:1:1.5>", "<lora:ink:1:1:x:dyn=2>", "<lora:te=1>", "<lora::1>", "<lora: ink:1>",
     "<lora:INK:1>", "<lora:sepia:0.5>", "<lora:Sepia tone:0.5>", "<lora:SEPIA:0.5>", "<lora:style,a:1>",
     "<lora:style_a:1>", "<lora:ink:0.5> and <lora:sepia:0.25:1>", "<lyco:ink:0.5>",
     "<lora:ink:0.1> <lyco:sepia:0.2> <lora:style_a:0.3>", "<lyco:ink:0.1> <lora:sepia:0.2> <lyco:style_a:0.3>",
     "<lora:ink:1> <lora:ink:0.5>", "<lora:sepia:1> <lora:Sepia tone:0.5>", "<lora:nothing:1>",
     "<lora:nothing:1> <lora:ink:1>", "<lora:ink:1 # comment\n>", "# <lora:ink:1>\nfox", "<hypernet:ink:1>",
     "(<lora:ink:0.5>:1.2)", "[<lora:ink:0.5>::0.5]"],
    [f"<lora:{name}:1>" for name in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "shared", "Shared", "SHARED", "twin",
                                    "Twin", "other", "none", "None", "Addams", "addams", "ADDAMS"]],
    ["<lora:ink:1> <lora:sepia two:1> <lora:moss:1>"],
]

PASTED = [
    ["a <lora:ink:1>", "ink: 111111111111"],
    ["a <lora:sepia:0.5:0.25>", "sepia: 222222222222"],
    ["a <lora:sepia:0.5> <lora:old ink:1>", "sepia: 222222222222, old ink: 111111111111"],
    ["a <lora:old moss:1>", "old moss: 333333333333"],
    ["a <lora:unknown:1>", "unknown: 444444444444"],
    ["a <lora:ink:1>", "ink: 222222222222"],
    ["a <lora:unknown:1> <lora:sepia:1>", "sepia: 222222222222"],
]

SCHEDULES = [
    [["x"], 4], [["x", "0.5"], 4], [["x", "0@0,1@1"], 1], [["x", "0.25@0,1@1"], 3], [["x", "0@0,1@1"], 4],
    [["x", "0@0,1@0.5"], 9], [["x", "0@0,1@0.5,0@1"], 20], [["x", "0.25@0.5,1@1"], 10], [["x", "1@0;0.5@3;1@6"], 12],
    [["x", "0~0,1~1"], 5], [["x", "0.5@5,1.0@10"], 16], [["x", "1@6,0.5@3,1@0"], 10],
    [["x", "1", "0@5,1@6"], 10], [["x", "te=1", "unet=0@0,1@1"], 6], [["x", "te=0.75@0,1@1", "unet=1"], 6],
    [["x", "te=0.5@0,1@1"], 6], [["x", "unet=0.5@0,1@1"], 6], [["x", "0.8@0.15,0@0.3"], 30],
    [["x", "0@0,1"], 6], [["x", "0@0,0.5@5,1"], 12], [["x", "0@0.5,1@0.5"], 9], [["x", "1@0.5,0@0.5,2@1"], 9],
    [["x", "0@1,1@2"], 6], [["x", "0@-1,1@1"], 6], [["x", "-1@0,1@1"], 6], [["x", " 0 @ 0 , 1 @ 1e0 "], 6],
    [["x", "0.3@0.1,0.9@0.77"], 13], [["x", "0@0,1@1.5"], 6], [["x", "0@0,x@1"], 6], [["x", "0@0,1@"], 6], [["x", "1@0.5"], 5],
    [["x", "0.5@0,1@1", "0.25@0,0@1"], 5], [["x", "0.5@2,1@2,0@8"], 12],
]

LIST_12 = "1,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1.1,1.2"
LIST_17 = "1,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1.1,1.2,1.3,1.4,1.5,1.6,1.7"
LIST_20 = "0.5," + ",".join(f"{i / 16}" for i in range(19))
LIST_26 = "0.25," + ",".join(f"{i / 32}" for i in range(25))

BLOCKS = [
    *[[["x", "1", f"lbw={name}"], 2] for name in
      ["NONE", "ALL", "INS", "IND", "INALL", "MIDD", "OUTD", "OUTS", "OUTALL", "ALL0.5", LIST_12, LIST_17, LIST_20, LIST_26]],
    [["x", "0.5", "w=MIDD"], 2], [["x", "0.5", "0.25", "lbw=MIDD"], 2], [["x", "0.5", "MIDD", "unet=0.25"], 2],
    [["x", "0.5", LIST_12, "unet=0.25"], 2], [["x", "lbw=OUTS", "0.5"], 2], [["x", "te=0.5", "unet=0.25", "lbw=OUTS"], 2],
    [["x", "1", "lbw= 1, 0 ,1,1,1,1,1,1,1,1,1,-1"], 2],
    *[[["x", "0.5", f"start={n}"], 6] for n in [-1, 0, 1, 2, 3, 5, 6, 7]],
    *[[["x", "0.5", f"stop={n}"], 6] for n in [-1, 0, 1, 2, 3, 5, 6, 7]],
    *[[["x", "0.5", "0.25", f"start={a}", f"stop={b}"], 6] for a in [0, 1, 2, 3, 4] for b in [0, 1, 2, 3, 4]],
    [["x", "0.5", "step=2-4"], 6], [["x", "0.5", "step=1-3"], 6], [["x", "0.5", "step=4-2"], 6],
    [["x", "0.5", "lbw=MIDD", "step=2-4"], 6], [["x", "0.5", "step= 2 - 4 "], 6], [["x", "0.5", "step=2-4-5"], 6],
    [["x", "0.5", "start=2.0"], 6], [["x", "0.5", "start=x"], 6],
]


class Webui:
    def __init__(self, folders):
        self.folder = Path(tempfile.mkdtemp())
        self.files, self.walked = {}, []
        shared = types.SimpleNamespace(
            cmd_opts=types.SimpleNamespace(lora_dir=str(self.folder), lyco_dir_backcompat=None),
            opts=mock.MagicMock(sd_lora="None", lora_in_memory_limit=99, lora_preferred_name="Alias from file",
                                lora_add_hashes_to_infotext=True),
            walk_files=lambda path, **_: self.walked if path else [], sd_model=None, options_templates={},
            options_section=lambda *_: {}, OptionInfo=mock.MagicMock())
        stubs = {"modules.shared": shared}
        for name in ["gradio", "torch", "torch.nn", "torch.nn.functional", "fastapi", "modules", "modules.errors", "modules.cache",
                     "modules.hashes", "modules.scripts", "modules.sd_models", "modules.sd_hijack", "modules.prompt_parser",
                     "modules.script_callbacks", "modules.ui_extra_networks", "modules.models", "modules.models.sd3",
                     "modules.models.sd3.mmdit", "modules.textual_inversion", "modules.textual_inversion.textual_inversion",
                     "lora", "lora_patches", "lora_logger", "ui_extra_networks_lora", "network_lora", "network_glora",
                     "network_hada", "network_ia3", "network_lokr", "network_full", "network_norm", "network_oft"]:
            stubs[name] = mock.MagicMock()
        for name in stubs:
            parent, _, leaf = name.rpartition(".")
            if parent:
                setattr(stubs[parent], leaf, stubs[name])
        metadata = lambda file: {"ss_output_name": self.files[file][1]} if self.files[file][1] else {}
        stubs["modules.sd_models"].read_metadata_from_safetensors = metadata
        stubs["modules.cache"].cached_data_for_file = lambda title, name, file, read: read()
        stubs["modules.hashes"].sha256_from_cache = lambda file, title, use_addnet_hash: self.files[file][2]
        stubs["modules.prompt_parser"].remove_comment_lines = self.remove_comment_lines
        sys.modules |= stubs

        def run(name, path):
            module = types.ModuleType(name)
            sys.modules[name] = module
            file = file_of(folders, f"webui/{path}")
            exec(compile(file.read_text(), str(file), "exec"), module.__dict__)
            return module

        self.extra_networks = run("modules.extra_networks", "modules/extra_networks.py")
        stubs["modules"].extra_networks = self.extra_networks
        run("network", "extensions-builtin/Lora/network.py")
        self.networks = run("networks", "extensions-builtin/Lora/networks.py")
        lora = run("extra_networks_lora", "extensions-builtin/Lora/extra_networks_lora.py")
        self.script = run("lora_script", "extensions-builtin/Lora/scripts/lora_script.py")
        self.extra_networks.register_extra_network(lora.ExtraNetworkLora())
        self.extra_networks.register_extra_network_alias(self.extra_networks.extra_network_registry["lora"], "lyco")
        network = sys.modules["network"].Network

        def load_network(name, on_disk):
            loaded = network(name, on_disk)
            loaded.mtime, loaded.bundle_embeddings = float("inf"), {}
            return loaded

        self.networks.load_network = load_network

    @staticmethod
    def remove_comment_lines(text):
        # The tests of sd-text compare this function.
        import re
        return re.sub(r"\s*#.*$", "", text, flags=re.MULTILINE) if "#" in text else text

    def library(self, files):
        self.files, self.walked = {}, []
        for index, (name, alias, digest) in enumerate(files):
            folder = self.folder / str(index)
            folder.mkdir(exist_ok=True)
            file = str(folder / f"{name}.safetensors")
            Path(file).touch()
            self.files[file] = (index, alias, digest)
            self.walked.append(file)
        self.networks.list_available_networks()

    def calls(self, prompt):
        self.networks.loaded_networks.clear()
        self.networks.networks_in_memory.clear()
        p = types.SimpleNamespace(extra_generation_params={}, all_prompts=[prompt])
        _, data = self.extra_networks.parse_prompt(prompt)
        comments = []
        self.networks.sd_hijack.model_hijack.comments = comments
        found = self.extra_networks.lookup_extra_networks(data)
        for network, arguments in found.items():
            try:
                network.activate(p, arguments)
            except Exception:
                return None
        # A network that is named twice is one object, which is loaded twice.
        loaded = [[self.files[it.network_on_disk.filename][0], it.te_multiplier, it.unet_multiplier, it.dyn_dim]
                  for it in self.networks.loaded_networks]
        missing = [name for comment in comments for name in comment.removeprefix("Lora not found: ").split(", ")]
        return {"loaded": loaded, "missing": missing, "hashes": p.extra_generation_params.get("Lora hashes")}

    def pasted(self, prompt, hashes):
        infotext = {"Prompt": prompt, "Lora hashes": hashes}
        self.script.infotext_pasted("", infotext)
        return infotext["Prompt"]


def counted(step):
    """Returns the number that WebUI has counted when the network is called for a step, from 0."""
    # `Sampler.callback_state` counts a step after the network was called for it.
    return max(step - 1, 0)


def schedules(folders, params_of):
    utils = types.ModuleType("utils")
    exec(file_of(folders, "loractl/loractl/lib/utils.py").read_text(), utils.__dict__)
    for arguments, steps in SCHEDULES:
        try:
            weights = utils.params_to_weights(params_of(arguments))
            at = lambda key, step: float(utils.calculate_weight(weights[key], counted(step), steps))
            yield [arguments, steps, [at("te", 0), [at("unet", step) for step in range(steps)]]]
        except (ValueError, IndexError):
            yield [arguments, steps, None]


def block_weight(folders):
    """Returns the functions of the script that need nothing of WebUI."""
    tree = ast.parse(file_of(folders, "block-weight/scripts/lora_block_weight.py").read_text())
    names = {"BLOCKID26", "BLOCKID17", "BLOCKID12", "BLOCKID20", "BLOCKIDFLUX", "BLOCKNUMS", "BLOCKIDS",
             "DEF_WEIGHT_PRESET", "re_inherited_weight", "loradealer", "stepsdealer", "settolist", "syntaxdealer", "multidealer",
             "getinheritedweight", "to26", "checkloadcond", "denoiser_callback"}
    script = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Script")
    kept = [node for node in [*tree.body, *script.body]
            if isinstance(node, ast.FunctionDef) and node.name in names
            or isinstance(node, ast.Assign) and node.targets[0].id in names]
    # The callback has an annotation from WebUI.
    for node in kept:
        if isinstance(node, ast.FunctionDef):
            for argument in node.args.args:
                argument.annotation = None
    module = types.ModuleType("lora_block_weight")
    import random, re
    module.__dict__.update(random=random, re=re, forge=False, reforge=False)
    exec(compile(ast.Module(body=kept, type_ignores=[]), "lora_block_weight.py", "exec"), module.__dict__)
    return module


def blocks(folders, params_of):
    module = block_weight(folders)
    presets = {}
    for line in module.DEF_WEIGHT_PRESET.splitlines():
        if not module.checkloadcond(line):
            name, _, weights = line.partition(":")
            presets[name.strip()] = weights
    for arguments, steps in BLOCKS:
        script = types.SimpleNamespace(is_flux=False, isnet=True, active=True, log={}, starts={}, stops={}, lora={}, lycoris={})
        loaded = []
        module.load_loras_blocks = lambda script, *given, **_: loaded.extend(given)
        try:
            module.loradealer(script, [], presets, {}, {"lora": [params_of(arguments)]})
        except ValueError:
            yield [arguments, steps, None]
            continue
        names, factors, te, unet = loaded[:4]
        network = types.SimpleNamespace(name=names[0] + "_in_LBW_0.1", te_multiplier=te[0], unet_multiplier=unet[0])
        script.networks = [network]
        run = []
        for step in range(steps):
            module.denoiser_callback(script, types.SimpleNamespace(sampling_step=counted(step)))
            run.append(network.unet_multiplier)
        yield [arguments, steps, [te[0], run, factors[0]]]


def main():
    folders = dict(zip(["webui", "loractl", "block-weight"], map(Path, sys.argv[1:])))
    webui = Webui(folders)
    params_of = webui.extra_networks.ExtraNetworkParams
    calls = []
    for files, prompts in zip(LIBRARIES, CALLS):
        webui.library(files)
        calls.append({"files": files, "prompts": [[prompt, webui.calls(prompt)] for prompt in prompts]})
    golden = {
        "calls": calls,
        "pasted": [[prompt, hashes, webui.pasted(prompt, hashes)] for prompt, hashes in PASTED],
        "schedules": list(schedules(folders, params_of)),
        "blocks": list(blocks(folders, params_of)),
    }
    lines = [f' "{key}": [\n  ' + ",\n  ".join(json.dumps(case) for case in cases) + "\n ]" for key, cases in golden.items()]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    (HERE / "prompt_loras.json").write_text(text)
    print({key: len(cases) for key, cases in golden.items()})


main()
