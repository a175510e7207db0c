"""Draws how cost grows, for the report: one picture per axis, from what was measured."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Rows = Sequence[Mapping[str, Any]]

MEASURES = (
    ("cpu_ms_per_job", "CPU per job, ms"),
    ("jobs_per_second", "jobs/s"),
    ("peak_mb", "peak memory, MB"),
)


def draw(axis: str, rows: Rows, path: Path) -> None:
    """Draw the measures of one axis. A row: `x`, `label`, `name`, and the measures."""
    import matplotlib as mpl  # noqa: PLC0415  # of the extra `bench`

    mpl.use("svg")
    from matplotlib import pyplot as plt  # noqa: PLC0415  # once the way of drawing is chosen

    mpl.rcParams["svg.hashsalt"] = axis  # the same numbers give the same file
    figure, parts = plt.subplots(1, len(MEASURES), figsize=(12, 3.2), layout="constrained")
    for part, (measure, label) in zip(parts, MEASURES, strict=True):
        for name in dict.fromkeys(row["name"] for row in rows):
            own = [row for row in rows if row["name"] == name and measure in row]
            part.plot([row["x"] for row in own], [row[measure] for row in own], "o-", label=name)
        part.set_xlabel(axis)
        part.set_ylabel(label)
        part.set_ylim(bottom=0)
        _scale(part, rows)
    parts[0].legend()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _scale(part: Any, rows: Rows) -> None:
    xs = sorted({row["x"] for row in rows})
    if xs[0] > 0:
        part.set_xscale("log")
    part.set_xticks(xs, [next(row["label"] for row in rows if row["x"] == x) for x in xs])
    part.minorticks_off()
