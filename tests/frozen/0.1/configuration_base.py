# deepencoder 0.1.0: configuration/base.py, flattened for this repository. Licence: Apache-2.0.
"""What the three configurations share beyond transformers' own base class."""

from transformers import PreTrainedConfig
from transformers.utils import CONFIG_NAME

from .configuration_sharing import SharedPart

__all__ = ["DeepEncoderPreTrainedConfig"]


class DeepEncoderPreTrainedConfig(SharedPart, PreTrainedConfig):
    """The base of the three configurations."""

    _shared_as = ("AutoConfig", CONFIG_NAME)
