"""Write the averaged weights of a run as a model that `AutoModel` loads, with its image processor and reading head.

    python -m training.export RUN FOLDER

Unusual: the weights are stored in float16, half as large, and the configuration says float32, so that a model which is
loaded without a `dtype` computes in float32.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import PreTrainedModel

from deepencoder import DeepEncoder, DeepEncoderImageProcessor
from deepencoder.reading.reader import HEAD_FOLDER, load_head

from .reader import ReadingObjective

__all__ = ["export", "load_reader"]


def _save_in_float16(model: PreTrainedModel, folder: Path) -> None:
    model.half().save_pretrained(folder)
    path = folder / "config.json"
    fields = json.loads(path.read_text()) | {"dtype": "float32"}
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")


def export(run: Path, folder: Path, checkpoint: str = "checkpoint.pt", weights: str = "average") -> None:
    """Write a DeepEncoder, its image processor and, in a subfolder, its reading head."""
    saved = torch.load(run / checkpoint, map_location="cpu", weights_only=True)
    reader = ReadingObjective()
    reader.load_state_dict(saved[weights])
    folder.mkdir(parents=True, exist_ok=True)
    _save_in_float16(reader.encoder, folder)
    _save_in_float16(reader.head, folder / HEAD_FOLDER)
    side = reader.encoder.config.sam_config.image_size
    # Print of usual sizes is too small in one view of a whole page, so larger pages get tiles.
    size = {"height": side, "width": side}
    DeepEncoderImageProcessor(mode="gundam", size=size, tile_size=side).save_pretrained(folder)


def load_reader(folder: Path) -> ReadingObjective:
    """Load what [`export`] wrote, in float32. What only the training needs has its starting weights."""
    encoder = DeepEncoder.from_pretrained(folder, dtype=torch.float32)
    reader = ReadingObjective(encoder.config)
    reader.encoder, reader.head = encoder, load_head(folder)
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
