"""Writes `pickles/torch-VERSION.pt` and `pickles/torch-VERSION-legacy.pt` with old versions of torch.

    python3.7 -m pip install torch==1.6.0 numpy==1.21.6 && python3.7 pickles_old.py
    python2.7 -m pip install torch==1.4.0 numpy==1.16.6 future==1.0.0 && python2.7 pickles_old.py

Run this before `pickles.py`, which reads the files with current torch. Before torch 1.6 there is
only the legacy format.
"""

import os
import sys

import numpy
import torch

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "pickles")


def numbers(*shape):
    count = 1
    for length in shape:
        count *= length
    return (torch.arange(count).double() * 0.37 - 1.5).reshape(shape).float()


def content():
    base = numbers(4, 6)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    model[0].weight.data.copy_(numbers(2, 3))
    model[0].bias.data.copy_(numbers(2))
    return {
        "epoch": 3,
        "loss": numpy.float64(0.5),
        "step": numpy.int64(7),
        "array": numpy.arange(3.0),
        "name": "a name",
        "bytes": b"\x00\xff",
        "state_dict": model.state_dict(),
        "tensors": {
            "float": numbers(2, 3), "half": numbers(3).half(), "double": numbers(2).double(), "long": torch.arange(3), "byte": torch.arange(3).byte(),
            "scalar": torch.tensor(2.5), "row": base[2], "corner": base[1:3, 2:5], "transposed": base.t(), "base": base,
            "parameter": torch.nn.Parameter(numbers(3)), "empty": torch.zeros(0, 3),
        },
        "parameters": torch.nn.ParameterDict({"*": torch.nn.Parameter(numbers(2, 4))}),
        "seen": {1, 2},
    }


version = torch.__version__.split("+")[0]
if version >= "1.6":
    torch.save(content(), os.path.join(OUT, "torch-%s.pt" % version))
    torch.save(content(), os.path.join(OUT, "torch-%s-legacy.pt" % version), _use_new_zipfile_serialization=False)
else:
    python = "-python2" if sys.version_info[0] == 2 else ""
    torch.save(content(), os.path.join(OUT, "torch-%s%s-legacy.pt" % (version, python)))
