"""Imports the name of the progress bar as the command line does, and checks that this imports no heavy library."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from deepencoder.conversion.readers.progress import PROGRESS_BAR  # noqa: E402

assert PROGRESS_BAR
assert not {"torch", "transformers", "datasets", "pyarrow"} & set(sys.modules)
