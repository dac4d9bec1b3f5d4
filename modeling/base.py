"""What the three models share beyond transformers' own base class."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..configuration.originals import import_converter

__all__ = ["DeepEncoderPreTrainedModel"]


class DeepEncoderPreTrainedModel(PreTrainedModel):
    """The base of the three models: loads checkpoints of other code, too."""

    @classmethod
    def from_original(cls, source: str | Path, **kwargs: Any) -> Any:
        r"""Load the encoder out of a checkpoint of other code, such as `deepseek-ai/DeepSeek-OCR`.

        What the checkpoint is is told by the names of its tensors. Of a model on the Hub only the encoder's bytes are
        downloaded; what is made of them is compared with transformers' class for the original where there is one, and
        kept in the Hub's cache. A local checkpoint is converted in memory, and only the encoder's tensors are read.

        Args:
            source: a Hub id, a folder, or a `.safetensors`, `.pth`, `.pt` or `.bin` file. No code of a pickle is run.
            kwargs: `revision`, `token`, `cache_dir`, `local_files_only` and `force_download`, as in `from_pretrained`;
                `full_download=True` to download whole files (for a server that knows no ranges of bytes);
                `verify=False` to compare nothing, `verify=True` to insist; `num_attention_heads`, `hidden_act` and
                `layer_norm_eps` of a CLIP or ViT tower, where nothing tells them. All others are
                `from_pretrained`'s: `dtype`, `device_map`, `attn_implementation` and so on.

        Returns:
            a model of this class, in evaluation mode and in the checkpoint's dtype.

        Raises:
            `ValueError`: an unknown, damaged or quantised checkpoint, one that holds a model of another class, or one
                that the converted model differs from.
            `OSError`: there is no such source, or it cannot be reached.
        """
        return import_converter().load_original(cls, source, **kwargs)
