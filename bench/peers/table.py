"""The measurements of a run as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.peers.rounds import Measured, Shape, ratio

INT8, FP32 = "ours int8", "ours fp32"
NATIVE_INT8, NATIVE_FP32 = "native int8", "native fp32"
"""Ours with the operators of matryo-native."""

RIVALS: Mapping[str, tuple[str, str]] = {
    FP32: (NATIVE_FP32, NATIVE_FP32),
    INT8: (NATIVE_INT8, NATIVE_INT8),
    "OpenVINO f32": (FP32, NATIVE_FP32),
    "OpenVINO bf16": (INT8, NATIVE_INT8),
    "OpenVINO 8-bit weights": (INT8, NATIVE_INT8),
    "OpenVINO static int8": (INT8, NATIVE_INT8),
    "llama.cpp Q8_0": (INT8, NATIVE_INT8),
    "FastEmbed fp32": (FP32, NATIVE_FP32),
}
"""Every engine, and which of ours are compared with it: without and with matryo-native."""


def _rows(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines] + [""]


def table(measured: Mapping[str, Measured], shapes: Sequence[Shape]) -> str:
    """Rates, ratios, accuracy and settings.

    Args:
        measured: by name of the engine.
        shapes: texts and tokens, in the order of the rows.
    """
    lines: list[str] = []
    timed = {name: one for name, one in measured.items() if one.rates}
    if timed:
        names = list(timed)
        label = [f"{texts} x {tokens}" for texts, tokens in shapes]
        lines += _rows(
            ["tok/s", *names],
            [
                [title, *(f"{timed[name].median(shape):,.0f}" for name in names)]
                for title, shape in zip(label, shapes, strict=True)
            ],
        )
        pairs = [
            (ours, name)
            for name in names
            for ours in dict.fromkeys(RIVALS.get(name, ()))
            if ours in timed
        ]
        lines += _rows(
            ["times as fast", *(f"{ours} / {name}" for ours, name in pairs)],
            [
                [title, *(f"{ratio(timed[a], timed[b], shape):.2f}" for a, b in pairs)]
                for title, shape in zip(label, shapes, strict=True)
            ],
        )
    if any(one.accuracy for one in measured.values()):
        heads = ["engine", "mean cosine", "least cosine", "alone against in a batch", "setting"]
        lines += _rows(
            heads,
            [
                [
                    name,
                    f"{found['mean']:.6f}",
                    f"{found['least']:.6f}",
                    f"{found['company']:.1e}",
                    one.accurate_at,
                ]
                for name, one in measured.items()
                if (found := one.accuracy)
            ],
        )
    for name, one in measured.items():
        lines.append(f"- {name}: {one.about}")
        by_setting: dict[str, list[str]] = {}
        for (texts, tokens), setting in one.chosen.items():
            by_setting.setdefault(setting, []).append(f"{texts} x {tokens}")
        lines += [f"  - {', '.join(where)}: {setting}" for setting, where in by_setting.items()]
    return "\n".join(lines)
