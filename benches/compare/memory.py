"""Runs a program and samples it from outside, so that every engine is measured alike."""

import os
import resource
import subprocess
import tempfile
import time
from pathlib import Path

PERIOD = 0.01  # seconds between two samples


class Failed(Exception):
    pass


def run(command):
    """Returns what the command printed, its peaks of memory in MB, and how busy others were.

    `rss_anon_mb` is the largest sample of anonymous memory: what the process allocated and could
    not give back. `peak_mb` is the largest resident set (VmHWM), which includes file pages that the
    system could drop, such as weights that were mapped. `elsewhere` is the share of the machine's
    processor time that other programs used meanwhile.
    """
    with tempfile.TemporaryFile("w+") as output:
        before = time.perf_counter(), busy_seconds() - own_seconds()
        process = subprocess.Popen([str(word) for word in command], stdout=output, text=True)
        anonymous = resident = 0
        while process.poll() is None:
            sizes = status(process.pid)
            anonymous = max(anonymous, sizes.get("RssAnon", 0))
            resident = max(resident, sizes.get("VmHWM", 0))
            time.sleep(PERIOD)
        after = time.perf_counter(), busy_seconds() - own_seconds()
        if process.returncode != 0:
            raise Failed(f"exit status {process.returncode}")
        output.seek(0)
        others = (after[1] - before[1]) / ((after[0] - before[0]) * os.cpu_count())
        return output.read(), dict(
            rss_anon_mb=anonymous / 1024, peak_mb=resident / 1024, elsewhere=max(others, 0)
        )


def status(pid):
    """The sizes in /proc/PID/status, in KiB. Empty when the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith(" kB")}


def busy_seconds():
    """Processor time of all programs and the time that the host took away, since the start."""
    user, nice, system, _, _, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def own_seconds():
    """Processor time of this program and of the programs it ran that have ended."""
    times = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(of.ru_utime + of.ru_stime for of in times)
