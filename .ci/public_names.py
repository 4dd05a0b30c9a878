#!/usr/bin/env python3
"""Compares the public names of the library crates with the lists in `.ci/public`.

`--write` updates the lists. Each line is a public item with its path, and its type or signature.
`{ .. }` stands for private fields, or for the body of a trait's method. A line `impl` has all
traits that a type implements, except blanket implementations and auto traits. `!Send` and `!Sync`
mark the types that lack these traits.

The names come from rustdoc's JSON, which needs `RUSTC_BOOTSTRAP`. The variable must not reach
cargo, because build scripts read it and every dependency would be built again. Therefore cargo
calls this script instead of rustdoc, and the script sets the variable for rustdoc alone.
"""
import difflib, json, os, pathlib, subprocess, sys, tempfile
from rust_types import arguments, bounds, function, generics, ids, path, requirements, ty, where

FORMAT = 57
HELP = "use Rust 1.95, or adapt the scripts to the new version and change FORMAT"
CRATES = ["sd-schedulers", "sd-text", "sd-core", "sd-onnx"]
SCRIPT = pathlib.Path(__file__).resolve()
FOLDER = "PUBLIC_NAMES_FOLDER"


class Listing:
    def __init__(self, crate):
        self.index, self.lines = crate["index"], []
        self.own = {int(id) for id, path in crate["paths"].items() if path["crate_id"] == 0}
        self.name = self.index[str(crate["root"])]["name"]
        found = {}
        self.walk(crate["root"], self.name, found)
        # An item with several paths stands at the shortest one.
        self.places = {id: min(p, key=lambda p: (p.count("::"), p)) for id, p in found.items()}
        for id, place in self.places.items():
            self.item(self.index[str(id)], place)
            for other in found[id] - {place}:
                self.line(other, f"pub use {other} = {place}")
        self.impls()

    def line(self, place, text, rank=0):
        self.lines.append((place, rank, text))

    def shown(self, ids):
        """Yields the items that are neither private nor `#[doc(hidden)]`."""
        yield from ((id, self.index[str(id)]) for id in ids if str(id) in self.index)

    def walk(self, module, place, found):
        """Collects the paths of each item, and lists what other crates define."""
        for id, item in self.shown(self.index[str(module)]["inner"]["module"]["items"]):
            name, use = item["name"], item["inner"].get("use")
            if use:
                id, name = use["id"], "*" if use["is_glob"] else use["name"]
                if id not in self.own:
                    source = use["source"] + "::*" * use["is_glob"]
                    self.line(f"{place}::{name}", f"pub use {place}::{name} = {source}")
                    continue
                if use["is_glob"]:
                    self.walk(id, place, found)
                    continue
                if not (item := self.index.get(str(id))):
                    continue
            if "module" in item["inner"] and id not in found:
                found[id] = set()  # A module may re-export the one around it.
                self.walk(id, f"{place}::{name}", found)
            found.setdefault(id, set()).add(f"{place}::{name}")

    def members(self, ids, place):
        for _, item in self.shown(ids):
            self.item(item, f"{place}::{item['name']}")

    def item(self, item, place):
        ((kind, it),) = item["inner"].items()
        if kind == "function":
            body = " { .. }" if it["has_body"] and item["visibility"] == "default" else ""
            return self.line(place, function(place, it) + body)
        members, end = [], ""
        match kind:
            case "struct" | "variant" if isinstance(it["kind"], dict):
                ((_, form),) = it["kind"].items()
                members = form if isinstance(form, list) else form["fields"]
                private = None in members or form is not members and form["has_stripped_fields"]
                end = " { .. }" if private else ""
            case "enum":
                members = it["variants"]
            case "trait":
                members, end = it["items"], bounds(it["bounds"])
            case "struct_field":
                kind, end = "field", ": " + ty(it)
            case "constant" | "static" | "assoc_const":
                kind, end = "const", ": " + ty(it["type"])
            case "type_alias" | "assoc_type":
                end = bounds(it.get("bounds")) + (" = " + ty(it["type"]) if it["type"] else "")
                kind = "type"
        own = it.get("generics") if isinstance(it, dict) else None
        mark = "#[non_exhaustive] " if "non_exhaustive" in item["attrs"] else ""
        self.line(place, f"{mark}pub {kind} {place}{generics(own)}{end}{where(own)}")
        self.members(members, place)

    def impls(self):
        """Lists the methods under their type, and the traits of each type in one line."""
        traits = {}
        for item in self.index.values():
            it = item["inner"].get("impl")
            if not it or item["crate_id"] or it["blanket_impl"]:
                continue
            trait, owner = it["trait"], it["for"].get("borrowed_ref", {}).get("type", it["for"])
            owner = owner.get("resolved_path", {}).get("id")
            if self.own.intersection(ids([it["for"], trait])) - self.places.keys():
                continue  # It names a private type or trait.
            if trait is None:
                for _, method in self.shown(it["items"]):
                    own = method["inner"].get("function", {}).get("generics", {})
                    own.setdefault("where_predicates", []).extend(requirements(it["generics"]))
                self.members(it["items"], self.places[owner])
                continue
            lacks = it["is_negative"] and trait["path"] in ("Send", "Sync")
            if it["is_synthetic"] and not lacks or trait["path"] == "StructuralPartialEq":
                continue
            place = self.places.get(owner) or self.places.get(trait["id"]) or self.name
            target = ty(it["for"])
            if owner in self.places and "resolved_path" in it["for"]:
                target = place + arguments(it["for"]["resolved_path"]["args"])
            if not owner:
                target += where({"where_predicates": requirements(it["generics"])})
            names = traits.setdefault((place, target), set())
            names.add("!" * it["is_negative"] + path(trait))
        for (place, target), names in traits.items():
            self.line(place, f"impl {' + '.join(sorted(names))} for {target}", 1)


def documented():
    """Returns the JSON of each crate, with the features that it has in a build of the workspace."""
    with tempfile.TemporaryDirectory() as folder:
        # The name of the folder makes cargo run rustdoc each time.
        flags = f'-Z unstable-options --output-format json --cfg names="{folder}"'
        env = os.environ | {FOLDER: folder, "RUSTDOC": str(SCRIPT), "RUSTDOCFLAGS": flags}
        command = "cargo doc --workspace --no-deps --lib --locked --quiet".split()
        if subprocess.run(command, env=env, cwd=SCRIPT.parent.parent).returncode:
            sys.exit("rustdoc failed")
        files = [pathlib.Path(folder, name.replace("-", "_") + ".json") for name in CRATES]
        return [json.loads(file.read_text()) for file in files]


def main():
    changed = False
    for name, crate in zip(CRATES, documented()):
        if (version := crate["format_version"]) != FORMAT:
            sys.exit(f"rustdoc's JSON has version {version}, not {FORMAT}: {HELP}")
        file = SCRIPT.parent / "public" / f"{name}.txt"
        before = file.read_text().splitlines() if file.exists() else []
        after = [text for _, _, text in sorted(set(Listing(crate).lines))]
        if "--write" in sys.argv:
            file.write_text("\n".join(after) + "\n")
        elif before != after:
            changed = True
            print(*difflib.unified_diff(before, after, name, "code", "", "", 0, ""), sep="\n")
    if changed:
        sys.exit("Public names changed. If they should, run `.ci/public_names.py --write`.")


if FOLDER not in os.environ:
    main()
else:  # Cargo calls the script as rustdoc. The HTML in cargo's own folder stays as it is.
    command = ["rustdoc", *sys.argv[1:]]
    if "-o" in command:
        command[command.index("-o") + 1] = os.environ[FOLDER]
    os.environ["RUSTC_BOOTSTRAP"] = "1"
    os.execvp(command[0], command)
