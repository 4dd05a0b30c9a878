"""Runs a program and samples its memory from outside, so that every engine is measured alike."""

import subprocess
import tempfile
import time
from pathlib import Path

PERIOD = 0.01  # seconds between two samples


class Failed(Exception):
    pass


def run(command):
    """Returns what the command printed and its peaks of memory in MB.

    `rss_anon_mb` is the largest sample of anonymous memory: what the process allocated and could
    not give back. `peak_mb` is the largest resident set (VmHWM), which includes file pages that the
    system could drop, such as weights that were mapped.
    """
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen([str(word) for word in command], stdout=output, text=True)
        anonymous = resident = 0
        while process.poll() is None:
            sizes = status(process.pid)
            anonymous = max(anonymous, sizes.get("RssAnon", 0))
            resident = max(resident, sizes.get("VmHWM", 0))
            time.sleep(PERIOD)
        if process.returncode != 0:
            raise Failed(f"exit status {process.returncode}")
        output.seek(0)
        return output.read(), dict(rss_anon_mb=anonymous / 1024, peak_mb=resident / 1024)


def status(pid):
    """The sizes in /proc/PID/status, in KiB. Empty when the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith(" kB")}
