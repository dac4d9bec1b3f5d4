"""Write the averaged weights of a run as a model that `AutoModel` loads, with its image processor and reading head.

python -m training.export RUN EXPORT
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from deepencoder import DeepEncoder, DeepEncoderImageProcessor

from .reader import ReadingObjective

__all__ = ["export", "load_reader"]

HEAD = "reading_head.safetensors"
PATCH_READER = "patch_reader."
"""Prefix of the weights that read SAM's patches instead of tokens."""


def export(run: Path, folder: Path, checkpoint: str = "checkpoint.pt", weights: str = "average") -> None:
    """Write a DeepEncoder in float16, its image processor, and the head's weights beside it."""
    saved = torch.load(run / checkpoint, map_location="cpu", weights_only=True)
    reader = ReadingObjective()
    reader.load_state_dict(saved[weights])
    folder.mkdir(parents=True, exist_ok=True)
    reader.encoder.half().save_pretrained(folder)
    side = reader.encoder.config.sam_config.image_size
    DeepEncoderImageProcessor(mode="small", do_pad=True, size={"height": side, "width": side}).save_pretrained(folder)
    tensors = {name: tensor.half() for name, tensor in reader.head.state_dict().items()}
    tensors |= {PATCH_READER + name: tensor.half() for name, tensor in reader.read_patches.state_dict().items()}
    save_file(tensors, folder / HEAD, metadata={"format": "pt", "steps": str(saved["step"])})


def load_reader(folder: Path) -> ReadingObjective:
    """Load what [`export`] wrote, in float32."""
    encoder = DeepEncoder.from_pretrained(folder, dtype=torch.float32)
    reader = ReadingObjective(encoder.config)
    reader.encoder = encoder
    tensors = {name: tensor.float() for name, tensor in load_file(folder / HEAD).items()}
    patch_reader = {
        name.removeprefix(PATCH_READER): tensors.pop(name) for name in list(tensors) if PATCH_READER in name
    }
    reader.head.load_state_dict(tensors)
    reader.read_patches.load_state_dict(patch_reader)
    return reader.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoint", default="checkpoint.pt", help="Name of the checkpoint in RUN.")
    parser.add_argument("--weights", default="average", choices=("average", "model"), help="Which weights to write.")
    options = parser.parse_args()
    export(options.run, options.folder, options.checkpoint, options.weights)


if __name__ == "__main__":
    main()
