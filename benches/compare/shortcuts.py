"""Draws the tables that `evaluate --shortcuts` prints: PSNR and score against the time of a run.

    evaluate --dry-run --prompts 16 --shortcuts fast --fewer 0.6 > fast.md
    python shortcuts.py fast.md --plot fast.svg

Each file becomes a column of two panels. Lines join the settings of one method.
"""

import argparse
import json
from pathlib import Path

COLOURS = {
    "fewer steps": "black",
    "forecast (Spectrum)": "tab:blue",
    "stability (SADA)": "tab:green",
    "deep (DeepCache)": "tab:orange",
    "merged tokens": "tab:purple",
    "adaptive guidance": "tab:red",
}


def method(shortcuts):
    """Returns the method of a row, or None for the row without shortcuts."""
    if shortcuts == "none":
        return None
    if shortcuts.startswith("none,"):
        return "fewer steps"
    if shortcuts in ("fast", "faster"):
        return "forecast (Spectrum)"
    fields = json.loads(shortcuts)
    skip = fields.get("skip")
    if skip:
        kind = next(iter(skip))
        return next(name for name in COLOURS if name.startswith(kind))
    return "adaptive guidance" if fields.get("guidance") is not None else "merged tokens"


def rows(file):
    """Yields the method, the number of steps, the relative time, the PSNR in dB, and the score in
    percent of each row of a table."""
    for line in Path(file).read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 8 or not cells[0].isdigit():
            continue
        steps, shortcuts, _, time, psnr, _, thing, _ = cells
        psnr = None if psnr == "–" else float(psnr.split()[0])
        yield method(shortcuts), int(steps), float(time), psnr, float(thing.split()[0])


def plot(files, target):
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.fonttype"] = "none"  # keeps letters as text instead of outlines
    matplotlib.rcParams["svg.hashsalt"] = "shortcuts"
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        2, len(files), figsize=(4.2 * len(files), 6), squeeze=False, layout="constrained"
    )
    for column, file in zip(panels.T, files):
        table = list(rows(file))
        plain = next(score for name, *_, score in table if name is None)
        for name, colour in COLOURS.items():
            points = sorted(row[2:] for row in table if row[0] == name)
            if points:
                times, psnrs, scores = zip(*points)
                style = dict(color=colour, marker="o", markersize=3, linewidth=1, label=name)
                column[0].plot(times, psnrs, **style)
                column[1].plot(times, scores, **style)
        column[0].axhline(25, color="silver", linewidth=0.8)
        column[1].axhline(plain, color="silver", linewidth=0.8)
        column[0].set_title(f"{table[0][1]} steps", fontsize=9, loc="left")
        column[0].set_ylabel("PSNR, dB", fontsize=8)
        column[1].set_ylabel("the right thing, %", fontsize=8)
        for panel in column:
            panel.set_xlabel("time, relative to no shortcut", fontsize=8)
            panel.tick_params(labelsize=7)
            panel.spines[["top", "right"]].set_visible(False)
    panels[0, 0].legend(fontsize=7, frameon=False)
    figure.savefig(target, metadata={"Date": None} if str(target).endswith(".svg") else None)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="TABLE")
    parser.add_argument("--plot", type=Path, required=True, metavar="FILE")
    arguments = parser.parse_args()
    plot(arguments.files, arguments.plot)


if __name__ == "__main__":
    main()
