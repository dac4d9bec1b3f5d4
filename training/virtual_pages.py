"""Position tables for a crop of a page.

Unusual: the models resize their position tables to the grid of their input. A crop of 128 pixels would see the table
of a whole page, squeezed, and a distance of one patch would mean another thing than on a page. Training therefore
gives the model the part of each table that belongs to the crop's part of the page. For pages of other sizes than the
configuration's, the model still resizes that part, as it will resize the table for the page.
"""

import torch

from deepencoder import DeepEncoder

__all__ = ["crop_position_tables"]


def crop_position_tables(encoder: DeepEncoder, side: int, page_side: int) -> dict[str, torch.Tensor]:
    """Return the tables of SAM's global attention and absolute positions for a crop at a random place.

    Args:
        encoder: the model.
        side: side of the crop in pixels.
        page_side: side of the page in pixels.

    Returns:
        the tables by parameter name, with gradients.
    """
    config = encoder.config.sam_config
    native = config.image_size // config.patch_size
    # Rows of a table that belong to the crop, if the table is for the whole page.
    count = max(2, min(native, round(native * side / page_side)))
    left, top = torch.randint(native - count + 1, (2,)).tolist()
    sam = encoder.sam_encoder
    positions = sam.embeddings.position_embedding[:, top : top + count, left : left + count]
    tables = {"sam_encoder.embeddings.position_embedding": positions}
    for index in config.global_attn_indexes:
        for axis in ("h", "w"):
            table = getattr(sam.layers[index].attn, f"rel_pos_{axis}")
            # Row `native - 1` is distance 0.
            tables[f"sam_encoder.layers.{index}.attn.rel_pos_{axis}"] = table[native - count : native + count - 1]
    return tables
