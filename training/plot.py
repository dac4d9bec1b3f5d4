"""The plot of a run: its losses, and how well it reads held-out pages.

    python -m training.plot RUN

Writes `RUN/log.png` from `RUN/log.jsonl`.
"""

import argparse
import json
from pathlib import Path

__all__ = ["plot_log"]

LOSSES = ("patches", "tokens", "texts", "regions", "pages")


def plot_log(run: Path) -> Path:
    """Plot a run's log, and return the picture's path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    figure, (losses, accuracies) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name in LOSSES:
        points = [(row["step"], row[name]) for row in rows if name in row]
        losses.plot(*zip(*points, strict=True), label=name) if points else None
    evaluated = [row for row in rows if "held_out" in row]
    for size in evaluated[0]["held_out"] if evaluated else ():
        if size.isdigit():
            points = [(row["step"], 100 * row["held_out"][size][1]) for row in evaluated]
            accuracies.plot(*zip(*points, strict=True), marker="o", label=f"{size} px")
    losses.set(xlabel="steps", ylabel="loss", yscale="log")
    accuracies.set(xlabel="steps", ylabel="characters right on held-out pages, %", ylim=(0, 100))
    for axes in (losses, accuracies):
        axes.grid(alpha=0.3)
        axes.legend()
    path = run / "log.png"
    figure.savefig(path, dpi=110)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    print(f"See {plot_log(parser.parse_args().run)}.")


if __name__ == "__main__":
    main()
