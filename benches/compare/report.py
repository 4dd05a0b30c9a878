"""Writes the tables and the plot of a sitting."""

from statistics import median

from peers import ENGINES

TITLES = {
    "unet": "UNet call",
    "vae-decoder": "VAE decode",
    "picture": "Picture of 20 steps with guidance",
}
# The engines that the ratios compare with. The quickest of each group counts.
TORCH_BF16 = ("diffusers/bf16", "diffusers/bf16/channels-last")
OPENVINO_BF16 = ("openvino-api/bf16",)
# A run does not count if other programs used more than this share of the processors during it.
ELSEWHERE = 0.05


def undisturbed(sitting):
    """Returns the sitting without the runs during which other programs were busy."""
    runs = [run for run in sitting["runs"] if run["elsewhere"] <= ELSEWHERE]
    return sitting | dict(runs=runs, disturbed=len(sitting["runs"]) - len(runs))


def markdown(sitting):
    lines = [rates(sitting), ""]
    for part, title in TITLES.items():
        rows = rows_of(sitting, part)
        if not rows:
            continue
        torch, openvino = (quickest(rows, names) for names in (TORCH_BF16, OPENVINO_BF16))
        errors = sitting["errors"].get(part, {})
        lines += [
            f"### {title}",
            "",
            "| | call, s: median (least) of calls | of diffusers bf16 "
            "| of OpenVINO's API bf16 | load, s "
            "| anon, MB | peak, MB | error |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for name, row in rows.items():
            error = f"{100 * errors[name]:.2g} %" if errors.get(name) else "–"
            lines.append(
                f"| {name} | {row['call']:.2f} ({row['least']:.2f}) of {row['calls']} | {ratio(row, torch)} "
                f"| {ratio(row, openvino)} | {row['load']:.1f} | {row['anon']:,.0f} | {row['peak']:,.0f} "
                f"| {error} |"
            )
        if flops := sitting["flops"].get(part):
            floors = (
                f"{flops / 1e9 / best(sitting, precision):.2f} s in {precision}"
                for precision in ("float32", "bfloat16")
            )
            lines += [
                "",
                f"{flops / 1e9:,.0f} GFLOP: at the rates of the matrix products {' and '.join(floors)}.",
            ]
        lines.append("")
    if sitting.get("disturbed"):
        lines.append(
            f"{sitting['disturbed']} runs do not count: other programs were busy during them."
        )
    lines += [f"Left out: {name} ({reason})." for name, reason in sitting["left_out"].items()]
    return "\n".join(lines)


def rates(sitting):
    """Returns a text about the machine, with the range of its rates over the rounds."""
    found = sitting["machine"]
    spans = {
        name: (
            min(rate[name] for rate in sitting["rates"]),
            max(rate[name] for rate in sitting["rates"]),
        )
        for name in sitting["rates"][0]
    }

    def span(name):
        return " to ".join(f"{end:,.0f}" for end in spans[name])

    products = "; ".join(
        f"{name.replace('_gflops', '').replace('_', ' ')}: {span(name)} GFLOP/s"
        for name in spans
        if name.endswith("gflops")
    )
    versions = ", ".join(
        f"{name} {version}" for name, version in sitting["versions"].items() if version
    )
    return (
        f"{found['cpu']} (family {found['family']}, model {found['model']}, "
        f"{'with' if found['amx'] else 'without'} AMX), {found['cores']} cores, {found['memory_gb']} GB. "
        f"Matrix products: {products}. Copy: {span('copy_gbs')} GB/s. {versions}."
    )


def best(sitting, precision):
    """Returns the best rate of a matrix product in the sitting, in GFLOP/s."""
    return max(
        rate[name] for rate in sitting["rates"] for name in rate if name.startswith(precision)
    )


def rows_of(sitting, part):
    """Returns the figures of each engine over all rounds, in the order of `peers.ENGINES`."""
    runs = {}
    for run in sorted(sitting["runs"], key=lambda run: place(run["engine"])):
        if run["part"] == part:
            runs.setdefault(run["engine"], []).append(run)
    return {
        name: dict(
            call=median(second for run in of for second in run["calls_s"]),
            least=min(second for run in of for second in run["calls_s"]),
            calls=sum(len(run["calls_s"]) for run in of),
            load=median(run["load_s"] for run in of),
            anon=max(run["rss_anon_mb"] for run in of),
            peak=max(run["peak_mb"] for run in of),
        )
        for name, of in runs.items()
    }


def place(row):
    """Returns the sort key of a row. This project's rows for other weights follow its own row."""
    name, _, weights = row.partition(" from ")
    return [engine.name for engine in ENGINES].index(name), weights


def quickest(rows, names):
    """Returns the smallest median of a call among the engines, or None if none of them ran."""
    return min((rows[name]["call"] for name in names if name in rows), default=None)


def ratio(row, other):
    return f"{row['call'] / other:.2f}" if other else "–"


def plot(sitting, file):
    """Draws one panel for each part, with bars for the medians and marks for the least calls."""
    parts = [part for part in TITLES if rows_of(sitting, part)]
    if not parts:
        return
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.fonttype"] = "none"  # keeps letters as text instead of outlines
    from matplotlib import pyplot

    heights = [len(rows_of(sitting, part)) for part in parts]
    figure, panels = pyplot.subplots(
        len(parts),
        1,
        figsize=(7, 0.25 * sum(heights) + 0.8 * len(parts)),
        squeeze=False,
        height_ratios=heights,
        layout="constrained",
    )
    for panel, part in zip(panels[:, 0], parts):
        rows = rows_of(sitting, part)
        colours = ["tab:blue" if name.startswith("sd-onnx") else "silver" for name in rows]
        bars = panel.barh(list(rows), [row["call"] for row in rows.values()], color=colours)
        panel.plot([row["least"] for row in rows.values()], list(rows), "k|", markersize=6)
        panel.bar_label(
            bars, [f"{row['call']:.2f}" for row in rows.values()], padding=3, fontsize=7
        )
        panel.invert_yaxis()
        panel.margins(x=0.1)
        panel.set_title(f"{TITLES[part]}, seconds", fontsize=9, loc="left")
        panel.tick_params(labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(file)
