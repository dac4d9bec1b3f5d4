"""The tables and the plot of an evaluation, for the guide and for the model card.

    python -m training.report RESULTS.json

Writes the tables between the marks in `docs/read.md`, `docs/read.png`, and the model card of the shipped model.
"""

import argparse
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["PARTS", "plot_reading", "replace_parts"]

ROOT = Path(__file__).parents[1]
GUIDE, PLOT = ROOT / "docs" / "read.md", ROOT / "docs" / "read.png"
CARD = ROOT / "reading" / "page-reader" / "README.md"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share < 0.9995 else "100 %"


def reading_table(results: dict[str, Any]) -> str:
    """Character accuracy by size of print, of drawn pages and of PDFs."""
    drawn, pdfs = (results["reading"][source]["by size of print"] for source in ("held-out pages", "PDFs"))
    headings = ("size of print", *2 * ("characters in a token", "accuracy", "without edges"))
    return _table(
        headings,
        [
            (f"{size} px", *(cell for scores in (drawn[size], pdfs[size]) for cell in _reading_cells(scores)))
            for size in drawn
        ],
    )


def _reading_cells(scores: dict[str, Any]) -> tuple[str, str, str]:
    return f"{scores['characters in a token']:.1f}", _percent(scores["accuracy"]), _percent(scores["without edges"])


def baseline_table(results: dict[str, Any]) -> str:
    """Accuracy of what is made from the text itself."""
    pooled, truncated = (results["baselines"][name] for name in ("mean-pooled embeddings", "truncated text"))
    headings = ("characters in a vector", *pooled)
    return _table(
        headings,
        [
            (name, *(_percent(scores[length]) for length in pooled))
            for name, scores in (("mean-pooled embeddings", pooled), ("one text token for each vector", truncated))
        ],
    )


def finding_table(results: dict[str, Any]) -> str:
    """Recall at 1 and at 10, a row for each model and kind of vector, a column for each kind of query."""
    rows = results["finding"]
    queries = list(dict.fromkeys(row["query"] for row in rows))
    found = {(row["model"], row["by"], row["query"]): row["recall"] for row in rows}
    ways = list(dict.fromkeys((row["model"], row["by"]) for row in rows))
    return _table(
        ("model", "by", *queries),
        [(*way, *(", ".join(map(_percent, found[(*way, query)])) for query in queries)) for way in ways],
    )


def precision_table(results: dict[str, Any]) -> str:
    """What reduced precision costs."""
    rows = results["precision"]
    names = [name for name in rows[0] if name != "form"]
    return _table(("form", *names), [(row["form"], *(_percent(row[name]) for name in names)) for row in rows])


PARTS = {
    "reading": reading_table,
    "baselines": baseline_table,
    "finding": finding_table,
    "precision": precision_table,
}
"""The tables, by the name that stands in their marks: `<!-- reading -->` and `<!-- end of reading -->`."""


def replace_parts(text: str, results: dict[str, Any]) -> str:
    """Replace what is between the marks of each table that the text has."""
    for name, make in PARTS.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)"
        if name in results:
            table = make(results)
            text = re.sub(
                pattern, lambda match, table=table: match[1] + table + "\n" + match[2], text, flags=re.DOTALL
            )
    return text


def plot_reading(results: dict[str, Any], path: Path) -> None:
    """Plot accuracy against characters in a token, beside the baselines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for source, style in (("held-out pages", "o-"), ("PDFs", "s-")):
        scores = results["reading"][source]["by size of print"].values()
        xs, ys = zip(*sorted((row["characters in a token"], row["accuracy"]) for row in scores), strict=True)
        axes.plot(xs, [100 * y for y in ys], style, label=f"page reader, {source}")
    names = {"mean-pooled embeddings": "mean-pooled embeddings of the text", "truncated text": "one text token"}
    for name, label in names.items():
        scores = results.get("baselines", {}).get(name, {})
        axes.plot([int(length) for length in scores], [100 * y for y in scores.values()], "--", label=label)
    axes.set(xlabel="characters in a token", ylabel="characters right, %", xlim=(0, 36), ylim=(0, 101))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    results = json.loads(parser.parse_args().results.read_text())
    for path in (GUIDE, CARD):
        path.write_text(replace_parts(path.read_text(), results))
    plot_reading(results, PLOT)


if __name__ == "__main__":
    main()
