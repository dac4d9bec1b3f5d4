"""JSON files beside weights: read up to a size that no honest file has."""

import json
from pathlib import Path
from typing import Any

__all__ = ["LARGEST_JSON", "read_json_file"]

# Bytes. An index of 100,000 tensors has 10 MB; what is parsed from a hostile file takes twenty times its size.
LARGEST_JSON = 2**25


def read_json_file(path: Path, largest: int = LARGEST_JSON) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        largest: most bytes that it may have.

    Raises:
        `OSError`: the file cannot be read.
        `ValueError`: it is not valid JSON, or is too large. The message does not name the file.
    """
    with open(path, "rb") as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise ValueError(f"it has more than {largest} bytes")
    try:
        return json.loads(content)
    except UnicodeDecodeError as error:  # It holds the whole content, which must not get into a message.
        raise ValueError(f"it is not UTF-8 text: {error.reason}") from None
    except RecursionError as error:
        raise ValueError("it is too deeply nested") from error
