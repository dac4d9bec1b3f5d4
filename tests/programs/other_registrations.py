"""Registers classes of others before and after deepencoder: the mapping that holds our references keeps them."""

import copy

from transformers import AutoModel, PreTrainedConfig


class TheirConfig(PreTrainedConfig):
    model_type = "theirs"


class Theirs:
    config_class = TheirConfig


AutoModel.register(TheirConfig, Theirs)
import deepencoder  # noqa: E402

mapping = AutoModel._model_mapping
assert mapping[TheirConfig] is Theirs
content = copy.copy(mapping)._extra_content
assert content[deepencoder.SamEncoderConfig] is deepencoder.SamEncoder
assert deepencoder.ClipVisionEncoder in mapping._extra_content.values()


class Mine(deepencoder.SamEncoder):
    pass


AutoModel.register(deepencoder.SamEncoderConfig, Mine, exist_ok=True)
assert type(AutoModel.from_config(deepencoder.SamEncoderConfig.tiny())) is Mine
