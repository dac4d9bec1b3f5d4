"""Checks that the layouts of checkpoints, which help texts list, are imported without torch and transformers."""

import sys

from deepencoder.conversion.layouts import LAYOUTS

assert len({layout.slug for layout in LAYOUTS}) == len(LAYOUTS) > 0
assert all(callable(layout.family.image_processor) and callable(layout.family.read_hints) for layout in LAYOUTS)
found = {"numpy", "torch", "transformers"} & sys.modules.keys()
assert not found, found
