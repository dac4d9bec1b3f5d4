"""What the three configurations share beyond transformers' own base class."""

import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import CONFIG_NAME

from .sharing import flat_name, settle_auto_map

__all__ = ["DeepEncoderPreTrainedConfig"]


class DeepEncoderPreTrainedConfig(PreTrainedConfig):
    """The base of the three configurations: names code in its file only where the code lies beside it."""

    def save_pretrained(
        self, save_directory: str | os.PathLike[Any], push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Write `config.json`; see transformers' `save_pretrained`."""
        super().save_pretrained(save_directory, push_to_hub, **kwargs)
        settle_auto_map(Path(save_directory) / CONFIG_NAME, AutoConfig=flat_name(type(self)))
