"""One engine on one part of a model, in a process of its own. `compare.py` starts it.

    worker.py MODULE JOB CALLS DUMP

MODULE is one of `engines`, JOB its fields as JSON. Prints `load_s`, `calls_s` (the seconds of each
call, after one that is not timed) and `bare_anon_mb`, the anonymous memory before the load, with
the engine's library imported. Writes the output of the last call to DUMP as raw float32.
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
    module, job, calls, dump = sys.argv[1:]
    job = Job(**{name: Path(value) if name in ("model", "graphs", "exports") else value
                 for name, value in json.loads(job).items()})
    engine = importlib.import_module(f"engines.{module}")
    bare = status("self")["RssAnon"] / 1024
    start = time.perf_counter()
    call = engine.start(job)
    load = time.perf_counter() - start
    output, seconds = call(), []
    for _ in range(int(calls)):
        start = time.perf_counter()
        output = call()
        seconds.append(time.perf_counter() - start)
    assert numpy.isfinite(output).all(), "the output contains NaN or infinity"
    output.astype("<f4").tofile(dump)
    print(json.dumps(dict(load_s=load, calls_s=seconds, bare_anon_mb=bare)))


if __name__ == "__main__":
    main()
