"""What all configurations share beyond transformers' own base class."""

from transformers import PreTrainedConfig
from transformers.utils import CONFIG_NAME

from .remote_code import SharedPart

__all__ = ["DeepEncoderPreTrainedConfig"]


class DeepEncoderPreTrainedConfig(SharedPart, PreTrainedConfig):
    """The base class of all configurations."""

    _shared_as = ("AutoConfig", CONFIG_NAME)
