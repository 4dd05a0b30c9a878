#!/usr/bin/env python3
"""Checks the crates in `Cargo.lock`: their licences, Rust versions, origins and duplicates.

Advisories need a database from the network: see the page `contributing` of the handbook.
"""
import collections, json, re, subprocess, sys

# A licence must be one of these. None of them asks more than to keep its text.
LICENCES = {"MIT", "Apache-2.0", "ISC", "Unicode-3.0", "Zlib"}
# Crates with another licence, and why they are accepted.
EXCEPTIONS = {
    ("option-ext", "MPL-2.0"): "the licence covers the files of this crate alone; `dirs` needs it",
}
# Crates in more than one version, and what keeps the older one. An entry that is not needed fails.
DUPLICATES = {
    "getrandom": "tokenizers",
    "hashbrown": "safetensors",
    "itertools": "criterion",
    "miniz_oxide": "png",
    "r-efi": "getrandom of tokenizers",
    "rand": "tokenizers",
    "rand_core": "rand of tokenizers",
    "syn": "proc macros of prost, tokenizers and zerocopy",
}


def allowed(licence):
    """Evaluates an SPDX expression. Old crates write `MIT/Apache-2.0` for `OR`."""
    words = re.findall(r"[()]|[^\s()]+", licence.replace("/", " OR ").replace(" WITH ", "+WITH+"))
    values = {"OR": "or", "AND": "and", "(": "(", ")": ")"}
    return eval(" ".join(values.get(word, str(word in LICENCES)) for word in words))


def number(version):
    return [int(part) for part in (version.split("-")[0].split(".") + ["0", "0"])[:3]]


def main():
    command = ["cargo", "metadata", "--locked", "--format-version", "1"]
    packages = json.loads(subprocess.check_output(command))["packages"]
    msrv = next(p["rust_version"] for p in packages if p["name"] == "sd-onnx")
    problems, versions, silent = [], collections.defaultdict(list), 0
    for p in packages:
        name, licence = f"{p['name']} {p['version']}", p["license"] or ""
        versions[p["name"]].append(p["version"])
        if not licence or not allowed(licence) and (p["name"], licence) not in EXCEPTIONS:
            problems.append(f"{name} has the licence `{licence}`")
        if p["source"] and not p["source"].startswith("registry+"):
            problems.append(f"{name} comes from {p['source']}")
        if p["rust_version"] and number(p["rust_version"]) > number(msrv):
            problems.append(f"{name} needs Rust {p['rust_version']}, but we promise {msrv}")
        silent += p["rust_version"] is None
    doubled = {name for name, found in versions.items() if len(found) > 1}
    for name in sorted(doubled - DUPLICATES.keys()):
        problems.append(f"{name} is there in the versions {', '.join(versions[name])}")
    for name in sorted(DUPLICATES.keys() - doubled):
        problems.append(f"{name} is there once: remove it from DUPLICATES")
    print(f"{len(packages)} crates, {silent} without a `rust-version`, {len(doubled)} doubled")
    if problems:
        sys.exit("\n".join(problems))


main()
