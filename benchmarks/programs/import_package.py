"""Prints the seconds that importing the package takes, beyond torch and transformers."""

import time

import torch  # noqa: F401
import transformers  # noqa: F401

start = time.perf_counter()
import deepencoder  # noqa: E402, F401

print(time.perf_counter() - start)
