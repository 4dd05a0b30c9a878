"""Runs a program and samples its memory from outside, so that all engines are measured alike."""

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
    """Returns the command's output, its peak memory in MiB, and how busy other programs were.

    `rss_anon_mb` is the largest sample of anonymous memory, which the process allocated and the
    system cannot drop. `peak_mb` is the largest resident set (VmHWM). It includes file pages that
    the system could drop, such as mapped weights. `elsewhere` is the share of the machine's
    processor time that other programs used during the run.
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
    """Returns the sizes in /proc/PID/status, in KiB. Empty if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith(" kB")}


def busy_seconds():
    """Returns the seconds since the boot that all programs used or the host took away."""
    user, nice, system, _, _, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def own_seconds():
    """Returns the processor time of this program and of its ended child processes, in seconds."""
    times = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(of.ru_utime + of.ru_stime for of in times)
