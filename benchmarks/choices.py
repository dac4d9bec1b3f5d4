"""The tables under "Which one to choose" in docs/performance.md, made from the files in benchmarks/results.

    python benchmarks/choices.py            # writes the tables between the two marks in the guide
    python benchmarks/choices.py --print    # prints them

A row for each kind of processor, number of threads, precision and page. The results of `speed.py --peers` name all
contenders; older results of `speed.py` have only our model and transformers' class, and are labelled so.
"""

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
GUIDE = ROOT / "docs" / "performance.md"
MARKS = ("<!-- choices: made by benchmarks/choices.py -->", "<!-- end of choices -->")
PRECISIONS = ("float32", "bfloat16", "int8")
PAGES = ("512", "640", "1024", "gundam")
COLUMNS = ("torch", "torch, compiled", "ONNX Runtime", "OpenVINO", "transformers' class", "llama.cpp")
PAGE_OF_COSTS = "1024"  # The page of the second table.
OLD_PAGES = {"1024, 6 tiles": "gundam"}


class Result(NamedTuple):
    """What one contender took for one page."""

    processor: str
    threads: int
    page: str
    precision: str
    contender: str
    seconds: float
    costs: tuple[float, float, float] | None
    """Gigabytes of memory, seconds of loading, and seconds of the first page."""

    @property
    def group(self) -> tuple[str, int, str, str]:
        return self.processor, self.threads, self.page, self.precision

    @property
    def column(self) -> str:
        """The column of the table: the contender without its precision or its kind of file."""
        if self.contender.startswith("torch"):
            return "torch, compiled" if self.contender.endswith("compiled") else "torch"
        return self.contender.partition(", ")[0]


def read_peers(report: dict[str, Any]) -> Iterable[Result]:
    """Read a file of `speed.py --peers`."""
    for row in report["rows"]:
        yield Result(
            report["processor"],
            row["threads"],
            row["workload"],
            row["precision"],
            row["contender"],
            row["median_s"],
            (row["peak_bytes"] / 1e9, row["load_s"], row["first_s"]),
        )


def read_speed(report: dict[str, Any], processor: str) -> Iterable[Result]:
    """Read a file of `speed.py` without `--peers`, which has no loading times and no memory of whole models."""
    for row in report["rows"]:
        page = OLD_PAGES.get(row["name"], row["name"])
        for who, name in (("ours", "torch"), ("peer", "transformers' class")):
            if page in PAGES and "median_s" in row[who]:
                threads = report["environment"]["threads"]
                yield Result(
                    processor, threads, page, report["dtype"], f"{name}, {report['dtype']}", row[who]["median_s"], None
                )


def read_all(folder: Path) -> list[Result]:
    """Read the results of all CPUs. Where a processor has both kinds of files, those with all contenders are used."""
    peers = [
        result for path in sorted(folder.glob("peers_*.json")) for result in read_peers(json.loads(path.read_text()))
    ]
    measured = {result.processor for result in peers}
    older = []
    for path in sorted(folder.glob("speed_*.json")):
        processor, report = path.stem.removeprefix("speed_").removesuffix("_bfloat16"), json.loads(path.read_text())
        if processor not in measured:
            older += read_speed(report, f"{processor} ({report['environment']['date'][:7]})")
    return peers + older


def group(results: list[Result]) -> dict[tuple[str, int, str, str], dict[str, Result]]:
    """Return for each group the fastest result of each column, in the order of the tables."""
    groups: dict[tuple[str, int, str, str], dict[str, Result]] = {}
    for result in sorted(results, key=lambda result: result.seconds):
        groups.setdefault(result.group, {}).setdefault(result.column, result)

    def order(key: tuple[str, int, str, str]) -> tuple[Any, ...]:
        return key[0], -key[1], PRECISIONS.index(key[3]), PAGES.index(key[2])

    return {key: groups[key] for key in sorted(groups, key=order)}


def make_times(results: list[Result]) -> str:
    """Return the table of times: a row for each group, and in bold the fastest of each."""
    lines = [f"| processor, threads | precision | page | {' | '.join(COLUMNS)} |", "|---" * (3 + len(COLUMNS)) + "|"]
    for (processor, threads, page, precision), found in group(results).items():
        fastest = min(found.values(), key=lambda result: result.seconds)
        cells = [f"{processor}, {threads}", precision, page]
        for column in COLUMNS:
            result = found.get(column)
            text = "" if result is None else f"{result.seconds:.2f} s"
            cells.append(f"**{text}**" if result is fastest else text)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def make_costs(results: list[Result]) -> str:
    """Return the table of what each contender needs for one kind of page: the whole memory, and the loading."""
    lines = ["| processor, threads | contender | memory | loading | first page |", "|---" * 5 + "|"]
    for (processor, threads, page, _), found in group(results).items():
        for column in COLUMNS if page == PAGE_OF_COSTS else ():
            result = found.get(column)
            if result is None or result.costs is None:
                continue
            gigabytes, loading, first = result.costs
            cells = (
                f"{processor}, {threads}",
                result.contender,
                f"{gigabytes:.1f} GB",
                f"{loading:.1f} s",
                f"{first:.1f} s",
            )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def make_tables(results: list[Result]) -> str:
    """Return both tables in Markdown."""
    middle = f"What a page of {PAGE_OF_COSTS} pixels needs besides time: the memory of the model and of the page, the "
    middle += "time of loading the model, and that of the first page:"
    return f"{make_times(results)}\n\n{middle}\n\n{make_costs(results)}"


def replace_between_marks(text: str, tables: str) -> str:
    """Put the tables between the marks of a document.

    Raises:
        `ValueError`: the document lacks a mark.
    """
    pattern = re.compile(f"{re.escape(MARKS[0])}.*?{re.escape(MARKS[1])}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"text must hold {MARKS[0]!r} and, after it, {MARKS[1]!r}.")
    return pattern.sub(lambda _: f"{MARKS[0]}\n{tables}\n{MARKS[1]}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print", action="store_true", help="print the tables and leave the guide as it is")
    tables = make_tables(read_all(RESULTS))
    if parser.parse_args().print:
        print(tables)
    else:
        GUIDE.write_text(replace_between_marks(GUIDE.read_text(), tables))


if __name__ == "__main__":
    main()
