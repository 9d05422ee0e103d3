"""Draws benchmarks/plots/*.svg from results.json; runs in an environment of its own, so that plots cost no launch time."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "strongroom"
from matplotlib import pyplot  # noqa: E402

HERE = Path(__file__).parent


def plot(found: dict[str, dict[str, object]], folder: Path) -> None:
    """Draw seconds per query, plain and trusted, and the ratio by scale."""
    folder.mkdir(exist_ok=True)
    for name, figures in found.items():
        plain, trusted = figures["plain"], figures["trusted"]
        assert isinstance(plain, dict)
        assert isinstance(trusted, dict)
        figure, axes = pyplot.subplots(figsize=(9, 3.2), layout="constrained")
        places = range(len(plain))
        axes.bar([p - 0.2 for p in places], list(plain.values()), 0.4, label="plain Spark", color="#9aa5b1")
        axes.bar(
            [p + 0.2 for p in places], list(trusted.values()), 0.4, label="Strongroom (SIMULATED)", color="#1f6f8b"
        )
        axes.set_xticks(list(places), list(plain), fontsize=8)
        axes.set_ylabel("seconds")
        axes.set_title(f"TPC-H, {name}: total ratio {figures['ratio']}", fontsize=10)
        axes.legend(fontsize=8)
        figure.savefig(folder / f"tpch-{name.replace(' ', '-')}.svg", metadata={"Date": None})
        pyplot.close(figure)
    figure, axes = pyplot.subplots(figsize=(4.5, 3.2), layout="constrained")
    for kind in sorted({name.split()[0] for name in found}):
        rows = sorted((float(n.split()[1]), f["ratio"]) for n, f in found.items() if n.split()[0] == kind)
        axes.plot([r[0] for r in rows], [r[1] for r in rows], marker="o", label=kind)
    axes.axhline(1.1, color="#b00", linewidth=1, linestyle="--", label="asked: at most 1.10")
    axes.set_xlabel("TPC-H scale factor")
    axes.set_ylabel("trusted / plain")
    axes.legend(fontsize=8)
    figure.savefig(folder / "tpch-ratio-by-scale.svg", metadata={"Date": None})
    pyplot.close(figure)


def plot_views(found: dict[str, dict[str, float]], folder: Path) -> None:
    """Draw MB/s of each way to read and write, by where the files are."""
    figure, axes = pyplot.subplots(figsize=(14, 3.6), layout="constrained")
    ways, colours = list(found["trusted"]), {"plain": "#9aa5b1", "gocryptfs": "#d9a441", "trusted": "#1f6f8b"}
    for number, (side, figures) in enumerate(found.items()):
        name = "Strongroom (SIMULATED)" if side == "trusted" else side
        places = [p + 0.27 * (number - 1) for p in range(len(ways))]
        axes.bar(places, [figures[way] for way in ways], 0.26, label=name, color=colours[side])
    axes.set_yscale("log")
    axes.set_xticks(range(len(ways)), [way.replace(", ", ",\n") for way in ways], fontsize=5.5)
    axes.set_ylabel("MB/s")
    axes.set_title("A volume as a program sees it", fontsize=10)
    axes.legend(fontsize=8)
    figure.savefig(folder / "views.svg", metadata={"Date": None})
    pyplot.close(figure)


def plot_accuracy(found: dict[str, dict[str, dict[str, list[float]]]], folder: Path) -> None:
    """Draw LeNet's accuracy on MNIST by epoch, plain and trusted, alone and by two processes."""
    figure, axes = pyplot.subplots(figsize=(4.5, 3.2), layout="constrained")
    lines = {"epoch": ("one process", "-"), "two": ("two processes", "--")}
    for part, (name, style) in lines.items():
        for side, colour in (("plain", "#9aa5b1"), ("trusted", "#1f6f8b")):
            values = found[part]["accuracy"][side]
            shown = "Strongroom (SIMULATED)" if side == "trusted" else "plain"
            marker, width = ("o", 1.2) if side == "trusted" else ("s", 3)
            axes.plot(
                range(1, len(values) + 1),
                values,
                style,
                marker=marker,
                lw=width,
                color=colour,
                label=f"{shown}, {name}",
            )
    axes.plot([1, 2], [0.9488, 0.9696], "x", color="#b00", label="the old guide's log")
    axes.set_xlabel("epoch")
    axes.set_ylabel("accuracy on 10,000 images")
    axes.legend(fontsize=7)
    figure.savefig(folder / "accuracy.svg", metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    found = json.loads((HERE / "results.json").read_text())
    plot({n.removeprefix("tpch "): f for n, f in found.items() if n.startswith("tpch ")}, HERE / "plots")
    if "views" in found:
        plot_views(found["views"]["mb_per_s"], HERE / "plots")
    if "training" in found:
        plot_accuracy(found["training"], HERE / "plots")
