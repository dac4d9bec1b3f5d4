"""Every test of transformers that this project skips, with the reason.

Tests that transformers skips by itself (for text models, slow ones, those that need a GPU) are not listed.
"""

_NO_LOSS = "a base model has no loss, and transformers exempts its own base models; tests/modeling trains ours"
_MAPS = "SAM's blocks work on maps and in windows; tests/modeling/test_sam_encoder.py tests these shapes"

# Class attributes that disable tests of `ModelTesterMixin`, with the reasons.
FLAGS: dict[str, tuple[bool, str]] = {
    "test_resize_embeddings": (False, "the models have no vocabulary to resize"),
}

SKIPS: dict[str, str] = {
    "DeepEncoderImageProcessingTest.test_backends_equivalence": "it downloads an image; both backends are one class",
    "DeepEncoderImageProcessingTest.test_call_numpy_4_channels": "it expects four channels out, but we return RGB",
    "SamEncoderTest.test_attention_outputs": _MAPS,
    "SamEncoderTest.test_hidden_states_output": _MAPS,
} | {
    f"{model}.{test}": _NO_LOSS
    for model in ("SamEncoderTest", "ClipVisionEncoderTest", "DeepEncoderTest", "DeepEncoderV2Test")
    for test in (
        "test_training",
        "test_training_gradient_checkpointing",
        "test_training_gradient_checkpointing_use_reentrant_false",
        "test_training_gradient_checkpointing_use_reentrant_true",
    )
}
