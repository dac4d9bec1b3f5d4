"""Run the snippets and commands of Markdown documents, each document in a folder and a namespace of its own.

    python tests/programs/run_documents.py FOLDER DOCUMENT ...

Python and commands run in the order in which they are written. `deepencoder` runs in this process, which costs seconds
less than a new one for each command. Documents after the first find the model that the first one made. Results are
written to FOLDER/results.json: for each document its error, or null.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MODEL = "my-encoder"
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Yield each block of Python with lines of its own in a traceback, and each block of commands."""
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start(2))
        yield match[1], ("\n" * line if match[1] == "python" else "") + match[2]


def run_deepencoder(words: list[str]) -> None:
    """Run the command line in this process."""
    from deepencoder.cli import main

    sys.argv = ["deepencoder", *words, *(["--yes"] if words[0] == "push" else [])]  # `push` would ask.
    try:
        main()
    except SystemExit as stop:
        if stop.code:
            raise RuntimeError(f"exit code {stop.code}") from None


def run_command(line: str) -> None:
    words = shlex.split(line, comments=True)
    if words[0] == "deepencoder":
        run_deepencoder(words[1:])
    elif words[0] == "make":
        subprocess.run([*words, "--dry-run"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    elif words[:2] != ["pip", "install"]:
        raise ValueError("only deepencoder, make and pip are known")


def run_document(path: Path) -> None:
    """Run a document in the current folder."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for language, code in blocks(path.read_text()):
        if language == "python":
            exec(compile(code, str(path), "exec"), namespace)
            continue
        for line in filter(str.strip, code.splitlines()):
            try:
                run_command(line)
            except Exception as error:
                raise RuntimeError(f"{path.name}: {line}") from error


def main() -> None:
    folder, results = Path(sys.argv[1]), {}
    documents = [Path(name) for name in sys.argv[2:]]
    for document in documents:
        here = folder / document.stem
        here.mkdir()
        (here / "examples").symlink_to(ROOT / "examples")
        if document is not documents[0]:
            shutil.copytree(folder / documents[0].stem / MODEL, here / MODEL)
        os.chdir(here)
        try:
            run_document(document)
            results[document.name] = None
        except Exception:
            results[document.name] = traceback.format_exc()
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":  # Worker processes import this file.
    main()
