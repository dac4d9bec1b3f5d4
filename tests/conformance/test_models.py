"""transformers' `ModelTesterMixin` and `ConfigTester` on the models."""

import unittest
from typing import Any

import torch
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin, floats_tensor

from deepencoder import (
    ClipVisionEncoder,
    ClipVisionEncoderConfig,
    DeepEncoder,
    DeepEncoderConfig,
    DeepEncoderV2,
    DeepEncoderV2Config,
    SamEncoder,
    SamEncoderConfig,
)
from deepencoder.configuration.query_encoder import QueryEncoderConfig

from .skips import FLAGS


class ModelTester:
    """The methods and attributes that the mixins expect of a model tester."""

    batch_size = 3
    image_size = 128
    num_hidden_layers = 2
    num_attention_heads = 2
    hidden_size = 32
    is_training = True

    def __init__(self, parent: unittest.TestCase) -> None:
        self.parent = parent

    def get_config(self) -> Any:
        raise NotImplementedError

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        return self.get_config(), {
            "pixel_values": floats_tensor([self.batch_size, 3, self.image_size, self.image_size])
        }


class SamEncoderTester(ModelTester):
    seq_length = 64  # of a global block

    def get_config(self) -> SamEncoderConfig:
        return SamEncoderConfig.tiny(image_size=self.image_size, num_hidden_layers=self.num_hidden_layers)


class ClipVisionEncoderTester(ModelTester):
    seq_length = 65

    def get_config(self) -> ClipVisionEncoderConfig:
        return ClipVisionEncoderConfig.tiny(image_size=self.image_size, num_hidden_layers=self.num_hidden_layers)


class DeepEncoderTester(ModelTester):
    seq_length = 5  # CLIP's
    num_hidden_states_types = 2  # CLIP's and SAM's

    def get_config(self) -> DeepEncoderConfig:
        config = DeepEncoderConfig.tiny(image_size=self.image_size)
        sam_config = SamEncoderConfig.tiny(image_size=self.image_size, num_hidden_layers=self.num_hidden_layers)
        return DeepEncoderConfig(sam_config=sam_config, clip_config=config.clip_config, projection_dim=48)


class DeepEncoderV2Tester(ModelTester):
    seq_length = 8  # of the image and of its queries
    num_hidden_states_types = 2  # the query encoder's and SAM's

    def get_config(self) -> DeepEncoderV2Config:
        sam_config = SamEncoderConfig.tiny(image_size=self.image_size, num_hidden_layers=self.num_hidden_layers)
        query_config = QueryEncoderConfig.tiny(
            num_hidden_layers=self.num_hidden_layers, num_attention_heads=self.num_attention_heads
        )
        return DeepEncoderV2Config.tiny(
            self.image_size,
            sam_config=sam_config,
            query_config=query_config,
            query_sizes=(self.image_size, 2 * self.image_size),
        )


class CommonTests(ModelTesterMixin):
    test_resize_embeddings = FLAGS["test_resize_embeddings"][0]
    model_tester_class: type[ModelTester]
    config_class: type
    config_values: dict[str, Any]

    def setUp(self) -> None:
        self.model_tester = self.model_tester_class(self)
        self.config_tester = ConfigTester(
            self, config_class=self.config_class, has_text_modality=False, **self.config_values
        )

    def test_model_get_set_embeddings(self) -> None:
        # transformers' version of the test wants word embeddings; its vision models override it like this.
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            self.assertIsInstance(model.get_input_embeddings(), torch.nn.Conv2d)
            replacement = torch.nn.Conv2d(3, 32, kernel_size=16, stride=16)
            model.set_input_embeddings(replacement)
            self.assertIs(model.get_input_embeddings(), replacement)
            self.assertIsNone(model.get_output_embeddings())

    def test_config(self) -> None:
        self.config_tester.run_common_tests()


class SamEncoderTest(CommonTests, unittest.TestCase):
    all_model_classes = (SamEncoder,)
    model_tester_class = SamEncoderTester
    config_class = SamEncoderConfig
    config_values = {"hidden_size": 48, "num_attention_heads": 4, "global_attn_indexes": [1]}


class ClipVisionEncoderTest(CommonTests, unittest.TestCase):
    all_model_classes = (ClipVisionEncoder,)
    model_tester_class = ClipVisionEncoderTester
    config_class = ClipVisionEncoderConfig
    config_values = {"hidden_size": 48, "num_attention_heads": 4, "post_norm": "pooled"}


class DeepEncoderTest(CommonTests, unittest.TestCase):
    all_model_classes = (DeepEncoder,)
    model_tester_class = DeepEncoderTester
    config_class = DeepEncoderConfig
    config_values = {"projector_type": "mlp_gelu", "projector_depth": 2}
    _is_composite = True


class DeepEncoderV2Test(CommonTests, unittest.TestCase):
    all_model_classes = (DeepEncoderV2,)
    model_tester_class = DeepEncoderV2Tester
    config_class = DeepEncoderV2Config
    config_values = {"projector_type": "mlp_gelu", "projector_depth": 2}
    _is_composite = True
