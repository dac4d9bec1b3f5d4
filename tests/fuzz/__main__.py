"""Runs the fuzz program. The environment is set before huggingface_hub is imported, which reads it only then."""

import logging
import os
import sys

if __name__ == "__main__":
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "COLUMNS": "200",
        "OMP_NUM_THREADS": "1",
    }
    logging.disable(logging.CRITICAL)  # Importing torchao and transformers logs warnings.
    from .program import main

    sys.exit(main())
