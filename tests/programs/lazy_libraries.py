"""Checks which libraries the extraction imports, and when: `python -m tests.programs.lazy_libraries FOLDER`.

The folder holds one image. The program adds a PDF and lists the folder again, without pypdfium2.
"""

import importlib
import pkgutil
import sys
from pathlib import Path

import deepencoder.extraction
from deepencoder.extraction.limits import PAGE_TIMEOUT

folder = Path(sys.argv[1])
assert PAGE_TIMEOUT > 0 and "torch" not in sys.modules  # a help text shows the time limit

for module in pkgutil.walk_packages(deepencoder.extraction.__path__, "deepencoder.extraction."):
    importlib.import_module(module.name)
from deepencoder.extraction.listing import list_pages  # noqa: E402

assert len(list(list_pages([folder]))) == 1
found = {"datasets", "pyarrow", "pypdfium2", "ray"} & sys.modules.keys()
assert not found, found

sys.modules["pypdfium2"] = None  # type: ignore[assignment]  # importing it now raises ImportError
(folder / "a.pdf").write_bytes(b"%PDF-1.4")
try:
    list(list_pages([folder]))
except ImportError as error:
    assert "deepencoder[pdf]" in str(error), error
else:
    raise AssertionError("listing a PDF without pypdfium2 must fail")
