"""The ratios of a run as a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from bench.peers.rounds import Measured, Shape, ratio
from bench.peers.table import RIVALS


def plot(title: str, measured: Mapping[str, Measured], shapes: Sequence[Shape], path: Path) -> None:
    """Plot how many times as fast ours is as each other engine, by shape.

    Args:
        title: of the plot.
        measured: by name of the engine.
        shapes: texts and tokens, from left to right.
        path: of the SVG to write.
    """
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    plt.switch_backend("svg")
    cast("Any", mpl).rcParams["svg.hashsalt"] = "matryo"  # equal measurements give equal bytes
    figure, axes = cast("Any", plt).subplots(figsize=(7, 3.8))
    labels = [f"{texts} x {tokens}" for texts, tokens in shapes]
    for name, of_ours in RIVALS.items():
        known = [ours for ours in of_ours if ours in measured]
        if name in measured and known:  # with matryo-native where that was measured
            values = [ratio(measured[known[-1]], measured[name], shape) for shape in shapes]
            axes.plot(labels, values, marker="o", label=f"{known[-1]} / {name}")
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set(ylabel="times as fast", title=title, ylim=(0, None))
    axes.legend(fontsize=8, loc="lower left")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
