"""transformers' `ImageProcessingTestMixin` on the image processor."""

import unittest
from typing import Any

from transformers_tests.test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin

from deepencoder import DeepEncoderImageProcessor


class DeepEncoderImageProcessingTester(ImageProcessingTester):
    def __init__(self, parent: unittest.TestCase, **kwargs: Any) -> None:
        kwargs.setdefault("size", {"height": 32, "width": 48})
        super().__init__(parent, **kwargs)

    def _get_image_processing_classes(self) -> dict[str, type]:
        # As registered with AutoImageProcessor: Pillow is used whichever backend is asked for.
        return {"pil": DeepEncoderImageProcessor, "torchvision": DeepEncoderImageProcessor}


class DeepEncoderImageProcessingTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = DeepEncoderImageProcessingTester
