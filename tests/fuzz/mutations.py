"""Values and bytes that break things: what every area draws its inputs from."""

import json
import string
from random import Random
from typing import Any

__all__ = ["mutate_bytes", "mutate_fields", "nasty_json", "nasty_name", "nasty_value"]

NUMBERS = (0, 1, -1, 2, 3, 7, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 2**64, 10**6, 10**9, 10**30)
FLOATS = (0.0, -0.0, 0.5, -1.5, 1e-320, 1e30, 1e308, float("nan"), float("inf"), float("-inf"))
STRINGS = (
    "",
    " ",
    "a",
    "None",
    "true",
    "0",
    "-1",
    "nan",
    "../..",
    "/",
    "\0",
    "\n",
    "\x1b[31m",
    "é",
    "\ud800",
    "🙂",
    "x" * 5000,
)
BYTES = (b"\0", b"\xff", b"\x7f", b"\x80", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"{", b"<", b"\n")
MAX_DEPTH = 3


def nasty_value(random: Random, depth: int = 0) -> Any:
    """Return a JSON value of any type and size."""
    kinds = (
        ("number", "number", "float", "string", "bool", "none", "list", "dict") if depth < MAX_DEPTH else ("number",)
    )
    match random.choice(kinds):
        case "number":
            return random.choice(NUMBERS) * random.choice((1, 1, 1, -1))
        case "float":
            return random.choice(FLOATS)
        case "string":
            return random.choice(STRINGS)
        case "bool":
            return random.random() < 0.5
        case "none":
            return None
        case "list":
            return [nasty_value(random, depth + 1) for _ in range(random.choice((0, 1, 2, 3, 5)))]
        case _:
            return {nasty_name(random): nasty_value(random, depth + 1) for _ in range(random.choice((0, 1, 2)))}


def nasty_name(random: Random) -> str:
    """Return a name that somebody may have written by mistake or on purpose."""
    letters = "".join(random.choices(string.ascii_lowercase, k=random.randint(1, 8)))
    return random.choice((letters, letters, letters, *STRINGS[:-1]))


def mutate_fields(random: Random, fields: dict[str, Any], names: list[str] | None = None) -> dict[str, Any]:
    """Change one to three fields: other values, slightly other numbers, missing fields, and unknown ones."""
    changed = dict(fields)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        name = random.choice(names or sorted(fields))
        value = changed.get(name)
        match random.choice(("nasty", "nasty", "near", "missing", "inside", "unknown")):
            case "near" if isinstance(value, (int, float)) and not isinstance(value, bool):
                changed[name] = random.choice(
                    (value + 1, value - 1, -value, value * 2, value / 2, str(value), [value])
                )
            case "missing":
                changed.pop(name, None)
            case "inside" if isinstance(value, dict) and value:
                changed[name] = mutate_fields(random, value)
            case "inside" if isinstance(value, (list, tuple)):
                items = list(value)
                items.insert(random.randint(0, len(items)), nasty_value(random))
                changed[name] = items
            case "unknown":
                changed[nasty_name(random)] = nasty_value(random)
            case _:
                changed[name] = nasty_value(random)
    return changed


def nasty_json(random: Random, fields: dict[str, Any]) -> bytes:
    """Return the bytes of a JSON file: changed fields, another value, or damage."""
    match random.choice(("fields", "fields", "fields", "fields", "value", "nested", "bytes", "encoding")):
        case "fields":
            return json.dumps(mutate_fields(random, fields)).encode(errors="surrogatepass")
        case "value":
            return json.dumps(nasty_value(random)).encode(errors="surrogatepass")
        case "nested":
            opened = random.choice((b"[", b'{"a":', b'{"model_type":')) * random.choice((50, 100_000))
            return opened + random.choice((b"", b"1" + b"]" * 100_000))
        case "encoding":
            return json.dumps(fields).encode(random.choice(("utf-16", "utf-32", "utf-8-sig")))
        case _:
            return mutate_bytes(random, json.dumps(fields).encode())


def mutate_bytes(random: Random, data: bytes, other: bytes = b"") -> bytes:
    """Flip, cut, repeat, insert, splice or truncate a few parts of a file, more often near its start."""
    content = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 3, 8))):
        size = max(1, len(content))
        place = min(int(size * random.random() ** random.choice((1, 3))), size - 1)
        length = min(random.choice((1, 1, 2, 4, 8, 64)), size - place)
        match random.choice(("flip", "flip", "set", "set", "cut", "insert", "repeat", "splice", "truncate", "grow")):
            case "flip" if content:
                content[place] ^= 1 << random.randrange(8)
            case "set":
                value = random.choice(BYTES)
                content[place : place + len(value)] = value
            case "cut":
                del content[place : place + length]
            case "insert":
                content[place:place] = random.randbytes(length)
            case "repeat":
                content[place:place] = content[place : place + length] * random.choice((1, 2, 50))
            case "splice" if other:
                start = random.randrange(len(other))
                content[place : place + length] = other[start : start + random.choice((4, 64, 1024))]
            case "truncate":
                del content[place:]
            case "grow":
                content += random.randbytes(random.choice((1, 16, 1000)))
    return bytes(content)
