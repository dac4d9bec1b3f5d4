"""The command line in processes of its own."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..conftest import ROOT

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100", "HF_HUB_OFFLINE": "1"}


def run(*arguments: str | Path, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Run `deepencoder` with these arguments."""
    command = [sys.executable, "-m", "deepencoder", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=120, **kwargs)
