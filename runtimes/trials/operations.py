"""How many operations a page takes, counted from a configuration."""

from typing import Any

__all__ = ["count_operations"]


def count_operations(config: Any, height: int, width: int) -> float:
    """Count the operations of one view, a multiply-add as 2, without padding and position terms.

    Args:
        config (`DeepEncoderConfig`): the model's configuration.
        height: height of the view in pixels.
        width: width of the view in pixels.
    """
    sam, clip = config.sam_config, config.clip_config
    rows, columns = height // sam.patch_size, width // sam.patch_size
    positions, tokens = rows * columns, 1 + (rows // 4) * (columns // 4)
    hidden = sam.hidden_size
    block = positions * hidden * (4 * hidden + 2 * sam.intermediate_size)
    global_blocks = len(sam.global_attn_indexes)
    window = sam.window_size**2
    windows = -(-rows // sam.window_size) * -(-columns // sam.window_size)
    windowed_blocks = sam.num_hidden_layers - global_blocks
    attention = 2 * hidden * (global_blocks * positions**2 + windowed_blocks * windows * window**2)
    patches = positions * hidden * 3 * sam.patch_size**2
    channels = sam.output_channels
    neck = positions * (hidden * channels + 9 * channels**2)
    widths = (channels, *sam.downsample_channels)
    compressor = sum(
        positions // 4 ** (index + 1) * 9 * before * after
        for index, (before, after) in enumerate(zip(widths[:-1], widths[1:], strict=True))
    )
    clip_block = tokens * clip.hidden_size * (4 * clip.hidden_size + 2 * clip.intermediate_size)
    clip_all = clip.num_hidden_layers * (clip_block + 2 * tokens**2 * clip.hidden_size)
    projector = (tokens - 1) * config.hidden_size * config.projection_dim
    return 2.0 * (sam.num_hidden_layers * block + attention + patches + neck + compressor + clip_all + projector)
