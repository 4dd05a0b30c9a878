"""Writes `torch.save` files of all forms to `pickles/`, and the tensors in them to `pickles.json`.

    pip install -r requirements.txt torch==2.15.0 numpy==2.4.6 && python pickles.py

`tests/pickles.rs` compares the reader of pickles with `pickles.json`, exactly. For each file,
`pickles.json` lists the tensors that `torch.load` finds in it, with the names that the reader gives
them and with their bytes. Files with the same tensors share them.

Run `pickles_old.py` first, with old versions of torch. Files of other machines and forms are
imitated: the entries of a ZIP file are changed and written again, and `torch.load` must read the
result as before. The classes of lightning and omegaconf are stubs with the names of the real ones.
Legacy files name storages by addresses, so they differ from run to run.
"""

import argparse
import collections
import io
import json
import pathlib
import pickle
import sys
import types
import zipfile

import numpy
import torch

HERE = pathlib.Path(__file__).parent
OUT = HERE / "pickles"
DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32", "int16": "I16",
    "int8": "I8", "uint8": "U8", "uint16": "U16", "bool": "BOOL", "complex64": "C64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}


def stub(module, *names):
    """Makes classes that are found under the names of real classes."""
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
    made = [type(name, (), {"__module__": module}) for name in names]
    for name, made_class in zip(names, made):
        setattr(sys.modules[module], name, made_class)
    return made


[ModelCheckpoint] = stub("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
[EarlyStopping] = stub("lightning.pytorch.callbacks.early_stopping", "EarlyStopping")
[DictConfig] = stub("omegaconf.dictconfig", "DictConfig")
[AnyNode] = stub("omegaconf.nodes", "AnyNode")


def numbers(*shape, dtype=torch.float32):
    count = 1
    for length in shape:
        count *= length
    return (torch.arange(count, dtype=torch.float64) * 0.37 - 1.5).reshape(shape).to(dtype)


def tensors():
    """Returns every kind of tensor that files of weights have."""
    base = numbers(4, 6)
    marked = torch.nn.Parameter(numbers(2, 2))
    marked.note = "an attribute"
    kinds = {dtype: numbers(2, 3, dtype=getattr(torch, dtype)) for dtype in DTYPES if dtype not in ("bool", "complex64")}
    return kinds | {
        "bool": torch.tensor([True, False, True]),
        "complex64": torch.complex(numbers(3), numbers(3) + 1),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "ones": numbers(1, 5, 1, 1),
        "base": base,
        "same": base,
        "row": base[2],
        "column": base[:, 1],
        "corner": base[1:3, 2:5],
        "transposed": base.t(),
        "expanded": torch.tensor([7.0]).expand(3, 2),
        "last": numbers(2, 3, 4, 5, dtype=torch.float16).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(numbers(3), requires_grad=True),
        "parameter.marked": marked,
        "deeper": [numbers(2), (numbers(1), {"a": numbers(3), 7: numbers(1)})],
        "text": "é狐", "bytes": b"\x00\xff", "large": 1 << 80, "negative": -(1 << 40), "float": 0.1, "none": None, "yes": True,
    }


def checkpoint():
    """Returns what lightning writes: the model's tensors and the state of the training."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    state = collections.OrderedDict((f"model.{name}", tensor) for name, tensor in model.state_dict().items())
    state._metadata = model.state_dict()._metadata
    for tensor in state.values():
        tensor.copy_(numbers(*tensor.shape, dtype=tensor.dtype) if tensor.dim() else tensor)
    config = DictConfig()
    config.__dict__.update({"_content": {"a": AnyNode()}, "_parent": config, "tensor": numbers(1)})
    factories = collections.defaultdict(list)
    factories["lists"].append(1)
    return {
        "epoch": 3,
        "global_step": numpy.int64(840000),
        "pytorch-lightning_version": "1.4.2",
        "state_dict": state,
        "callbacks": {ModelCheckpoint: {"monitor": None, "best": torch.tensor(0.25)}, EarlyStopping: {"wait": 3}, "Saver{}": {}},
        "optimizer_states": [{"state": {0: {"exp_avg": numbers(2, 3)}}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999)}]}],
        "lr_schedulers": [{"lr_lambdas": [{"f": numpy.float64(0.5)}]}],
        "array": numpy.arange(3.0),
        "hyper_parameters": {"config": config, "seen": {1, 2}, "frozen": frozenset({"a"}), "raw": b"\x00\xe9", "size": torch.Size([2, 3])},
        "args": argparse.Namespace(lr=1.0),
        "factories": factories,
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "counter": collections.Counter("aab"),
    }


def webui(vectors):
    """Returns an embedding as WebUI writes it."""
    return {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": vectors},
        "name": "another name",
        "step": 499,
        "sd_checkpoint": "e3b0c442",
        "sd_checkpoint_name": "v1-5",
    }


def entries(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


class Pipe(io.BytesIO):
    """A file without seeking, so that the sizes are written after the data."""

    def seekable(self):
        return False

    def seek(self, *_):
        raise io.UnsupportedOperation("seek")

    def tell(self):
        raise io.UnsupportedOperation("tell")


def zipped(content, method=zipfile.ZIP_STORED, large=False, into=io.BytesIO):
    file = into()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in content.items():
            info = zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))
            info.compress_type = method
            with archive.open(info, "w", force_zip64=large) as entry:
                entry.write(data)
    return file.getvalue()


def saved(value, **options):
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def old_numpy(data):
    """Returns the same file as from numpy 1, whose modules have other names."""
    content = entries(data)
    [name] = [name for name in content if name.endswith("/data.pkl")]
    before = content[name]
    content[name] = before.replace(b"cnumpy._core.", b"cnumpy.core.")
    assert content[name] != before
    return zipped(content)


def old_torch(data):
    """Returns the same file as from torch 1.6 to 2.0: no byte order, no id, another folder name."""
    kept = {name: content for name, content in entries(data).items() if "byteorder" not in name and "/." not in name}
    return zipped({name.replace("archive/", "a folder/"): content for name, content in kept.items()})


def big_endian(data):
    """Returns the same file as from a big-endian machine."""
    content = entries(data)
    sizes = {str(key): size for key, size in storages(data).items()}
    for name, values in content.items():
        folder, key = name.rsplit("/", 1)
        if folder.endswith("/data"):
            content[name] = numpy.frombuffer(values, f"u{sizes[key]}").byteswap().tobytes()
    content["archive/byteorder"] = b"big"
    return zipped(content)


def storages(data):
    """Returns the number of bytes of a value in each storage."""
    sizes = {}

    class Reader(pickle.Unpickler):
        def persistent_load(self, identity):
            _, kind, key, _, _ = identity
            sizes[key] = kind._dtype.itemsize if hasattr(kind, "_dtype") else 1
            return torch.storage.TypedStorage(wrap_storage=torch.UntypedStorage(4096), dtype=getattr(kind, "_dtype", torch.uint8), _internal=True)

    Reader(io.BytesIO(entries(data)["archive/data.pkl"])).load()
    return sizes


def named(value, name=()):
    """Yields the tensors in a value with their names."""
    if isinstance(value, torch.Tensor):
        yield ".".join(name), value
    elif isinstance(value, torch.nn.ParameterDict):
        yield from named(dict(value._parameters), name)
    elif isinstance(value, dict):
        for key, inner in value.items():
            shown = f"{key.__module__}.{key.__qualname__}" if isinstance(key, type) else str(key)
            yield from named(inner, (*name, shown))
    elif isinstance(value, (list, tuple)):
        for place, inner in enumerate(value):
            yield from named(inner, (*name, str(place)))


def described(value):
    rows = []
    for name, tensor in named(value):
        data = tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
        rows.append([name, DTYPES[str(tensor.dtype).removeprefix("torch.")], list(tensor.shape), data.hex()])
    return rows


def main():
    assert torch.__version__.split("+")[0] == "2.15.0" and numpy.__version__ == "2.4.6"
    OUT.mkdir(exist_ok=True)
    old = {path.name: path.read_bytes() for path in OUT.glob("torch-*.pt")}
    plain = {name: tensor for name, tensor in tensors().items() if not name.startswith(("float8", "uint16"))}
    state = saved(tensors())
    files = {f"zip-{protocol}.pt": saved(tensors(), pickle_protocol=protocol) for protocol in range(2, 6)}
    files |= {f"legacy-{protocol}.pt": saved(plain, pickle_protocol=protocol, _use_new_zipfile_serialization=False) for protocol in range(1, 6)}
    files |= {
        "stored.pt": zipped(entries(state)),
        "deflated.pt": zipped(entries(state), zipfile.ZIP_DEFLATED),
        "behind.pt": zipped(entries(state), into=Pipe),
        "deflated-behind.pt": zipped(entries(state), zipfile.ZIP_DEFLATED, into=Pipe),
        "zip64.pt": zipped(entries(state), large=True),
        "torch1.pt": old_torch(saved(plain)),
        "big-endian.pt": big_endian(saved(plain)),
        "lightning.ckpt": saved(checkpoint()),
        "lightning-numpy1.ckpt": old_numpy(saved(checkpoint())),
        "lightning-legacy.ckpt": saved(checkpoint(), _use_new_zipfile_serialization=False),
        "webui.pt": saved(webui(numbers(2, 64))),
        "webui-parameter.pt": saved(webui(torch.nn.Parameter(numbers(2, 64))), _use_new_zipfile_serialization=False),
        "first.pt": saved({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": torch.nn.ParameterDict({"*": numbers(2, 64)})}),
        "learned_embeds.bin": saved({"<cat-toy>": numbers(64, dtype=torch.float16)}),
        "sdxl.pt": saved({"clip_g": numbers(2, 80), "clip_l": numbers(2, 64)}),
    }
    for path in OUT.iterdir():
        if path.name not in old:
            path.unlink()
    files |= old
    torch.serialization.set_crc32_options(False)
    files["no-checksums.pt"] = saved(plain)
    values, rows_of = [], {}

    def shared(value):
        rows = described(value)
        if rows not in values:
            values.append(rows)
        return values.index(rows)

    for name, data in files.items():
        (OUT / name).write_bytes(data)
        # Byte strings of Python 2 are texts.
        value = torch.load(io.BytesIO(data), weights_only=False, encoding="latin1" if "python2" in name else "utf-8")
        wrapped = isinstance(value.get("state_dict"), dict)
        rows_of[name] = [shared(value["state_dict"] if wrapped else value)]
        if wrapped:
            rows_of[name].append(shared({key: inner for key, inner in value.items() if key != "state_dict"}))
    lines = ",\n".join(json.dumps(rows, separators=(",", ":")) for rows in values)
    (HERE / "pickles.json").write_text(f'{{"files":{json.dumps(rows_of)},\n"values":[\n{lines}\n]}}\n', encoding="ascii")
    print(len(files), "files,", sum(len(data) for data in files.values()), "bytes")


if __name__ == "__main__":
    main()
