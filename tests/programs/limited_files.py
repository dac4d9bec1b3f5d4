"""Runs commands where files cannot grow beyond 20 kB, as on a full disk: `limited_files.py '[["info"], ...]'`."""

import json
import resource
import sys

import torch  # noqa: F401
import transformers  # noqa: F401

from deepencoder.cli import main

resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["deepencoder", *arguments]
    try:
        main()
    except SystemExit as stop:
        print(f"exit code {stop.code}", flush=True)
