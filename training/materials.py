"""What pages are made of: fonts and texts of Debian packages.

Unusual: packages are only unpacked, never installed, so this needs `apt-get` and `dpkg-deb`, but not root. Whole
packages are kept for tests, so that no font family and no text is in both halves.

    python -m training.materials FOLDER
"""

import argparse
import gzip
import json
import random
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from html.parser import HTMLParser
from pathlib import Path

from PIL import ImageFont

from deepencoder.reading.alphabet import ALPHABET, clean_text

__all__ = ["Block", "Materials", "PACKAGES", "Package", "gather"]


@dataclass(frozen=True)
class Package:
    """A Debian package.

    Args:
        name: the package's name.
        split: `"train"` or `"test"`.
        texts: patterns of the files with text in it; none for a package of fonts.
        pdfs: patterns of PDF files, for tests.
    """

    name: str
    split: str = "train"
    texts: tuple[str, ...] = ()
    pdfs: tuple[str, ...] = ()


TRAINING_FONTS = (
    "fonts-adf-accanthis fonts-adf-baskervald fonts-adf-gillius fonts-adf-libris fonts-adf-romande "
    "fonts-adf-universalis fonts-anonymous-pro fonts-arapey fonts-averia-sans-gwf fonts-averia-serif-gwf fonts-b612 "
    "fonts-cabin fonts-cantarell fonts-cardo fonts-clear-sans fonts-cmu fonts-comic-neue fonts-crosextra-caladea "
    "fonts-crosextra-carlito fonts-dejavu-core fonts-dejavu-extra fonts-fanwood fonts-fantasque-sans fonts-firacode "
    "fonts-freefont-ttf fonts-gfs-artemisia fonts-gfs-neohellenic fonts-go fonts-goudybookletter fonts-hack-ttf "
    "fonts-inconsolata fonts-inter fonts-jetbrains-mono fonts-junicode fonts-karla fonts-lato fonts-liberation2 "
    "fonts-lindenhill fonts-linuxlibertine fonts-manrope fonts-oldstandard fonts-paratype fonts-play fonts-prociono "
    "fonts-quattrocento fonts-roboto-unhinted fonts-sil-andika fonts-sil-charis fonts-sil-gentium-basic fonts-stix "
    "fonts-texgyre fonts-tuffy"
).split()
TEST_FONTS = (
    "fonts-courier-prime fonts-croscore fonts-ebgaramond fonts-gfs-didot fonts-national-park fonts-open-sans "
    "fonts-roboto-slab fonts-vollkorn"
).split()

PACKAGES = (
    *(Package(name) for name in TRAINING_FONTS),
    *(Package(name, "test") for name in TEST_FONTS),
    Package("anarchism", texts=("*.html",)),
    Package("apache2-doc", texts=("manual/en/**/*.html",)),
    Package("jargon-text", texts=("jargon.txt.gz",)),
    Package("postgresql-doc-15", texts=("html/*.html",)),
    Package("python3.11-doc", texts=("html/library/*.html", "html/tutorial/*.html", "html/howto/*.html")),
    Package("wordnet-base", texts=("data.noun", "data.verb", "data.adj")),
    Package("debian-reference-en", "test", ("ch*.en.html",), ("*.pdf",)),
    Package("developers-reference", "test", ("developers-reference.html",), ("*.pdf",)),
    Package("debian-policy", "test", ("fhs-3.0.html",), ("*.pdf.gz",)),
    Package("gnuplot-doc", "test", (), ("gnuplot.pdf",)),
)
"""Where the materials come from."""

# Parts of the names of fonts that do not look like print; "_k." is a font of pictures of keys.
SYMBOL_FONTS = (
    "_k.",
    "symbol",
    "dingbat",
    "math",
    "ornament",
    "keyboard",
    "initials",
    "outline",
    "emoji",
    "keyrus",
    "fell",
)
KINDS = {"p": "paragraph", "li": "item", "dd": "paragraph", "pre": "code", "td": "cell", "th": "cell"} | {
    f"h{level}": "heading" for level in range(1, 6)
}


@dataclass(frozen=True)
class Block:
    """A piece of text: its kind (`"paragraph"`, `"heading"`, `"item"`, `"code"` or `"cell"`) and its text."""

    kind: str
    text: str


class _BlockParser(HTMLParser):
    """Collects the blocks of an HTML document."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[Block] = []
        self._kind: str | None = None
        self._parts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in KINDS:
            self._finish()
            self._kind = KINDS[tag]

    def handle_endtag(self, tag: str) -> None:
        if tag in KINDS:
            self._finish()

    def handle_data(self, data: str) -> None:
        if self._kind is not None:
            self._parts.append(data)

    def _finish(self) -> None:
        if self._kind is not None:
            self.blocks.append(Block(self._kind, "".join(self._parts)))
        self._kind, self._parts = None, []


def _read_text(path: Path) -> str:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return data.decode("utf-8", "replace")


def _read_blocks(path: Path) -> Iterator[Block]:
    """Read the blocks of an HTML file, of a dictionary of WordNet, or of a text with empty lines between blocks."""
    text = _read_text(path)
    if path.suffix == ".html":
        parser = _BlockParser()
        parser.feed(text)
        yield from parser.blocks
    elif path.name.startswith("data."):
        for line in text.splitlines():
            if " | " in line:
                yield Block("paragraph", line.split(" | ", 1)[1])
    else:
        for paragraph in text.split("\n\n"):
            yield Block("paragraph", paragraph)


def _clean_blocks(blocks: Iterable[Block]) -> Iterator[Block]:
    """Bring blocks into the alphabet; drop those that are tiny, repeated, or not mostly in it."""
    seen = set()
    for block in blocks:
        if block.kind == "code":
            lines = [clean_text(line.replace("\t", "    ").strip()) for line in block.text.splitlines()]
            text = "\n".join(line for line in lines if line)
        else:
            text = clean_text(block.text)
        if len(text) >= 2 and len(text) > 0.8 * len(" ".join(block.text.split())) and text not in seen:
            seen.add(text)
            yield Block(block.kind, text)


def _draws_alphabet(path: Path) -> bool:
    """Return whether a font has a glyph of its own for each printable ASCII character."""
    try:
        font = ImageFont.truetype(str(path), 24)
        missing = bytes(font.getmask("\U0010fffe"))
        masks = [bytes(font.getmask(character)) for character in ALPHABET[2:96]]
    except (OSError, ValueError):
        return False
    return missing not in masks and len(set(masks)) > 85


def _find(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.rglob(pattern) if path.is_file()})


def _unpack(package: Package, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as downloads:
        subprocess.run(["apt-get", "download", "-q", package.name], cwd=downloads, check=True, capture_output=True)
        (archive,) = Path(downloads).glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", str(archive), str(folder)], check=True)


def gather(folder: Path) -> None:
    """Fetch all packages; write `fonts/SPLIT/*`, `texts/SPLIT/*.jsonl.gz` and `pdfs/*.pdf` into `folder`."""
    for package in PACKAGES:
        with tempfile.TemporaryDirectory() as name:
            unpacked = Path(name)
            _unpack(package, unpacked)
            fonts = [path for path in _find(unpacked, ("*.ttf", "*.otf")) if _draws_alphabet(path)]
            for path in fonts:
                if not any(word in path.name.lower() for word in SYMBOL_FONTS):
                    target = folder / "fonts" / package.split / path.name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(path.read_bytes())
            texts = _find(unpacked, package.texts)
            if texts:
                target = folder / "texts" / package.split / f"{package.name}.jsonl.gz"
                target.parent.mkdir(parents=True, exist_ok=True)
                blocks = _clean_blocks(block for path in texts for block in _read_blocks(path))
                lines = [json.dumps([block.kind, block.text]) for block in blocks]
                target.write_bytes(gzip.compress("\n".join(lines).encode()))
                print(f"{package.name}: {len(lines)} blocks")
            for path in _find(unpacked, package.pdfs):
                target = folder / "pdfs" / path.name.removesuffix(".gz")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())


class Materials:
    """The fonts and texts of one split.

    Args:
        folder: what [`gather`] wrote.
        split: `"train"` or `"test"`.
    """

    def __init__(self, folder: str | Path, split: str = "train") -> None:
        folder = Path(folder)
        self.fonts = sorted(map(str, (folder / "fonts" / split).iterdir()))
        self.documents: list[list[Block]] = []
        for path in sorted((folder / "texts" / split).iterdir()):
            lines = gzip.decompress(path.read_bytes()).decode().splitlines()
            self.documents.append([Block(*json.loads(line)) for line in lines])
        self.code_fonts = [path for path in self.fonts if _is_code_font(path)]

    def passage(self, generator: random.Random) -> Iterator[Block]:
        """Yield the blocks of a document from a random place on, and go on with another document at its end."""
        while True:
            document = generator.choice(self.documents)
            start = generator.randrange(len(document))
            yield from document[start : start + 200]


def _is_code_font(path: str) -> bool:
    name = Path(path).name.lower()
    return any(word in name for word in ("mono", "code", "courier", "hack", "incons", "cour", "typewriter", "cousine"))


@lru_cache(maxsize=512)
def load_font(path: str, size: int) -> ImageFont.FreeTypeFont:
    """Return a font at a size in pixels. The basic layout engine has no ligatures, so each character has its place."""
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch the fonts, texts and PDFs that training and tests use.")
    parser.add_argument("folder", type=Path)
    gather(parser.parse_args().folder)


if __name__ == "__main__":
    main()
