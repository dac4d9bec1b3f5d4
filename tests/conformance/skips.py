"""Every test of transformers that we skip on our own account, with its reason.

What transformers skips by itself (text models, tests marked slow, tests that need a GPU) is not listed.
"""

_NO_LOSS = "a base model without a loss, which transformers' own list of base models exempts; see tests/modeling"
_MAPS = "SAM's blocks work on maps and in windows: shapes of their own, tested in tests/modeling/test_sam_encoder.py"

# Class attributes that switch tests of `ModelTesterMixin` off, with their reasons.
FLAGS: dict[str, tuple[bool, str]] = {
    "test_resize_embeddings": (False, "the models have no vocabulary to resize"),
}

SKIPS: dict[str, str] = {
    "DeepEncoderImageProcessingTest.test_backends_equivalence": "downloads an image; both backends are one class",
    "DeepEncoderImageProcessingTest.test_call_numpy_4_channels": "four channels out: the encoder sees RGB only",
    "SamEncoderTest.test_attention_outputs": _MAPS,
    "SamEncoderTest.test_hidden_states_output": _MAPS,
} | {
    f"{model}.{test}": _NO_LOSS
    for model in ("SamEncoderTest", "ClipVisionEncoderTest", "DeepEncoderTest")
    for test in (
        "test_training",
        "test_training_gradient_checkpointing",
        "test_training_gradient_checkpointing_use_reentrant_false",
        "test_training_gradient_checkpointing_use_reentrant_true",
    )
}
