"""The characters that the page reader knows.

Unusual: index 0 is no character. It stands for an empty slot of the reading head.
"""

import unicodedata

__all__ = ["ALPHABET", "EMPTY", "clean_text", "encode_text"]

EMPTY = 0
"""Index of "no character here"."""

ALPHABET = "\0" + "".join(map(chr, range(32, 127))) + "‘’“”–—•…©é"
"""Every character, at its index. Index 1 is the space."""

INDEX = {character: index for index, character in enumerate(ALPHABET)}
SPELLED_OUT = str.maketrans({"\u00a0": " ", "\u2010": "-", "\u2011": "-", "\u2212": "-", "\u00ad": "", "\u200b": ""})


def clean_text(text: str) -> str:
    """Return `text` in the alphabet: white space becomes single spaces; accents and other characters are dropped."""
    text = " ".join(text.translate(SPELLED_OUT).split())
    if all(character in INDEX for character in text):
        return text
    kept = [
        character
        if character in INDEX
        else unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
        for character in text
    ]
    return " ".join("".join(kept).split())


def encode_text(text: str) -> list[int]:
    """Return the index of each character. A character that is not in the alphabet is a `KeyError`."""
    return [INDEX[character] for character in text]
