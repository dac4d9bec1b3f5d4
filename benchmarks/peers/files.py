"""The files that the contenders load: one model with random weights of the published size, in each of their formats.

    python benchmarks/peers/files.py                  # all of them, which takes some minutes and 10 GB of disk
    python benchmarks/peers/files.py --only gguf      # one kind

The files are kept in `.cache/benchmark` and used by the next run. `--again` writes them anew.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".cache" / "benchmark"
OURS = "model"
TRANSFORMERS = "transformers"
KINDS = ("models", "graphs", "gguf")
GGUF_FILES = ("f32", "f16", "bf16", "q8_0")


def gguf_path(folder: Path, gguf_type: str) -> Path:
    """Return where the file for llama.cpp with matrices of a type is."""
    return folder / "gguf" / f"mmproj-{gguf_type}.gguf"


def write_models(folder: Path, sides: Sequence[int]) -> None:
    """Write transformers' class and ours with the same weights, and random ones in what only ours has."""
    import torch

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from common import build_both

    peer, ours = build_both()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in (ours.image_newline, ours.view_separator):
            parameter.normal_(generator=generator)
        for parameter in ours.projector.parameters():
            parameter.normal_(std=0.02, generator=generator)
    peer.save_pretrained(folder / TRANSFORMERS)
    ours.save_pretrained(folder / OURS)


def _load(folder: Path) -> Any:
    from deepencoder import DeepEncoder

    return DeepEncoder.from_pretrained(folder / OURS).eval()


def write_graphs(folder: Path, sides: Sequence[int]) -> None:
    """Write the exported graphs for views of these sides, for each runtime that is installed."""
    from deepencoder.runtimes.trials.ways import WAYS, prepare_files

    formats = sorted({way.format for way in WAYS if way.format and not way.missing})
    prepare_files(_load(folder), folder, sides, formats)


def write_gguf_files(folder: Path, sides: Sequence[int]) -> None:
    from deepencoder.conversion.gguf_writer import write_gguf

    missing = [gguf_type for gguf_type in GGUF_FILES if not gguf_path(folder, gguf_type).exists()]
    model = _load(folder) if missing else None
    for gguf_type in missing:
        write_gguf(model, gguf_path(folder, gguf_type), gguf_type)


WRITERS = {"models": write_models, "graphs": write_graphs, "gguf": write_gguf_files}


def prepare(kinds: set[str], sides: Iterable[int]) -> None:
    """Write the files of these kinds that are missing. Each kind is a process of its own, which frees its memory.

    Args:
        kinds: some of [`KINDS`].
        sides: the sides of the views for which graphs are exported.
    """
    for kind in KINDS:
        if kind in kinds:
            command = [sys.executable, __file__, "--only", kind, "--sides", *map(str, sides)]
            subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--sides", nargs="+", type=int, default=[640, 1024], help="of the exported graphs")
    parser.add_argument("--again", action="store_true", help="write files that are there already")
    options = parser.parse_args()
    if options.again:
        for name in (options.only,) if options.only else (OURS, TRANSFORMERS, "graphs", "gguf"):
            shutil.rmtree(FOLDER / name, ignore_errors=True)
    if not options.only:
        prepare(set(KINDS), options.sides)
    elif options.only != "models" or not (FOLDER / OURS).exists():
        WRITERS[options.only](FOLDER, options.sides)


if __name__ == "__main__":
    main()
