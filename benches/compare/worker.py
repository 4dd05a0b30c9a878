"""Runs one engine on one part of a model. `compare.py` starts a process of it for each run.

    worker.py MODULE JOB CALLS DUMP
    worker.py --export JOB           only writes the graph that the engine `onnx_export` reads

MODULE is a module in `engines`, and JOB has the fields of `engines.Job` as JSON. The program prints
JSON: `load_s` is the seconds of the load, `calls_s` the seconds of each call, after one that is not
timed. `bare_anon_mb` is the anonymous memory before the load, with the engine's library imported.
The output of the last call is written to DUMP as raw float32.
"""

import importlib
import json
import sys
import time
from pathlib import Path

import numpy

from engines import Job
from memory import status


def main():
    if sys.argv[1] == "--export":
        from engines import onnx_export

        return onnx_export.export(read(sys.argv[2]))
    module, job, calls, dump = sys.argv[1:]
    job = read(job)
    engine = importlib.import_module(f"engines.{module}")
    bare = status("self")["RssAnon"] / 1024
    start = time.perf_counter()
    run = engine.start(job)
    load = time.perf_counter() - start
    run(0)
    seconds = []
    for number in range(1, int(calls) + 1):
        start = time.perf_counter()
        output = run(number)
        seconds.append(time.perf_counter() - start)
    assert numpy.isfinite(output).all(), "the output contains NaN or infinity"
    output.astype("<f4").tofile(dump)
    print(json.dumps(dict(load_s=load, calls_s=seconds, bare_anon_mb=bare)))


def read(job):
    """Returns the job that a JSON text describes."""
    fields = json.loads(job)
    paths = {name: Path(fields[name]) for name in ("model", "graphs", "checkpoint", "exports")}
    return Job(**fields | paths)


if __name__ == "__main__":
    main()
