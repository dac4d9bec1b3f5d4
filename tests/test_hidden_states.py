"""Hidden states and attention weights of both halves, however they are asked for and however the model runs."""

import copy
import doctest
import inspect
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from deepencoder import DeepEncoder, DeepEncoderConfig, DeepEncoderV2
from deepencoder.modeling.memory_budgets import MemoryBudgets, set_memory_budgets

from .conftest import randomize

EVERYTHING = {"output_hidden_states": True, "output_attentions": True}
ON_REQUEST = ("hidden_states", "attentions", "sam_hidden_states", "sam_attentions")
FIELDS = [*ON_REQUEST, *(f"local_{name}" for name in ON_REQUEST)]


def shapes(layers: Any) -> list[tuple[int, ...]]:
    return [tuple(layer.shape) for layer in layers]


def given(output: Any) -> set[str]:
    """Return the names of the fields on request that an output has."""
    return {name for name in FIELDS if output.get(name)}


@pytest.fixture
def model() -> Any:
    model = randomize(DeepEncoder(DeepEncoderConfig.tiny()))
    model.set_attn_implementation("eager")
    return model


@pytest.fixture
def inputs() -> dict[str, Any]:
    """Three pages with tiles of another size, two and none and six."""
    pixels, tiles = torch.randn(3, 3, 128, 192), torch.randn(8, 3, 96, 96)
    return {"pixel_values": pixels, "pixel_values_local": tiles, "patches_grid": [(2, 1), (1, 1), (2, 3)]}


@torch.no_grad()
def test_shapes(model: Any, inputs: dict[str, Any]) -> None:
    output = model(**inputs, **EVERYTHING)
    # 8 x 12 patches in windows of 6 are 2 x 2 windows; the second of three blocks is global. CLIP has 2 x 3 tokens.
    assert shapes(output.sam_hidden_states) == [(3, 8, 12, 32)] * 4
    assert shapes(output.sam_attentions) == [(12, 2, 36, 36), (3, 2, 96, 96), (12, 2, 36, 36)]
    assert shapes(output.hidden_states) == [(3, 7, 32)] * 3
    assert shapes(output.attentions) == [(3, 2, 7, 7)] * 2
    # A tile has 6 x 6 patches, which is one window, and 2 x 2 tokens.
    assert shapes(output.local_sam_hidden_states) == [(8, 6, 6, 32)] * 4
    assert shapes(output.local_sam_attentions) == [(8, 2, 36, 36)] * 3
    assert shapes(output.local_hidden_states) == [(8, 5, 32)] * 3
    assert shapes(output.local_attentions) == [(8, 2, 5, 5)] * 2


@torch.no_grad()
def test_they_are_those_of_the_halves_alone(model: Any, inputs: dict[str, Any]) -> None:
    output = model(**inputs, **EVERYTHING)
    for prefix, pixels in (("", inputs["pixel_values"]), ("local_", inputs["pixel_values_local"])):
        sam = model.sam_encoder(pixels, **EVERYTHING)
        clip = model.clip_encoder(patch_embeds=sam.last_hidden_state, **EVERYTHING)
        for name, half in (("sam_", sam), ("", clip)):
            torch.testing.assert_close(output[f"{prefix}{name}hidden_states"], half.hidden_states, rtol=0, atol=0)
            torch.testing.assert_close(output[f"{prefix}{name}attentions"], half.attentions, rtol=0, atol=0)


@torch.no_grad()
def test_they_are_collected_on_request_only(model: Any, inputs: dict[str, Any]) -> None:
    assert given(model(**inputs)) == set()
    assert given(model(**inputs, output_hidden_states=True)) == {name for name in FIELDS if "hidden" in name}
    assert given(model(inputs["pixel_values"], output_attentions=True)) == {"attentions", "sam_attentions"}


@torch.no_grad()
def test_the_configuration_asks_for_both_halves_or_for_one(model: Any) -> None:
    pixels = torch.randn(1, 3, 64, 64)
    model.config.output_hidden_states = True
    assert given(model(pixels)) == {"hidden_states", "sam_hidden_states"}
    assert given(model(pixels, output_hidden_states=False)) == set()
    model.config.output_hidden_states = False
    model.config.sam_config.output_hidden_states = True
    model.config.clip_config.output_attentions = True
    assert given(model(pixels)) == {"sam_hidden_states", "attentions"}


@pytest.mark.parametrize(("half", "field"), [("sam_config", "sam_attentions"), ("clip_config", "attentions")])
@torch.no_grad()
def test_one_half_alone_may_give_attention_weights(
    model: Any, half: str, field: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model.save_pretrained(tmp_path)
    chosen = {"sam_config": "sdpa", "clip_config": "sdpa"} | {half: "eager"}
    mixed = AutoModel.from_pretrained(tmp_path, attn_implementation=chosen)
    pixels = torch.randn(1, 3, 96, 96)
    output = mixed(pixels, output_attentions=True)
    assert given(output) == {field} and not caplog.records
    torch.testing.assert_close(output[field], model(pixels, output_attentions=True)[field], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_tuples_have_the_order_of_the_fields(model: Any, inputs: dict[str, Any]) -> None:
    fields, values = model(**inputs, **EVERYTHING), model(**inputs, **EVERYTHING, return_dict=False)
    assert isinstance(values, tuple) and len(values) == 12
    torch.testing.assert_close(values, tuple(fields[name] for name in fields), rtol=0, atol=0)


@torch.no_grad()
def test_image_features_have_them(model: Any, inputs: dict[str, Any]) -> None:
    features = model.get_image_features(**inputs, **EVERYTHING)
    assert given(features) == set(FIELDS)
    assert [len(tokens) for tokens in features.pooler_output] == [(4 + 1) * 2 + 9, 9, (4 + 1) * 6 + 9]


@torch.no_grad()
def test_strips_and_parts_change_no_hidden_state(model: Any, inputs: dict[str, Any]) -> None:
    model.set_attn_implementation("sdpa")
    whole = MemoryBudgets(cpu_strips=False, views=2**40)
    set_memory_budgets(model, whole)
    expected = model(**inputs, output_hidden_states=True)
    pieces = MemoryBudgets(attention_strip=1, feed_forward_strip=1, projection_piece=1, views=2 * 96 * 32 * 4)
    for budgets in (MemoryBudgets(), pieces):
        set_memory_budgets(model, budgets)
        output = model(**inputs, output_hidden_states=True)
        assert given(output) == given(expected)
        for name in given(expected):
            torch.testing.assert_close(output[name], expected[name], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_parts_keep_the_order_of_windows(model: Any, inputs: dict[str, Any]) -> None:
    expected = model(**inputs, output_attentions=True)
    set_memory_budgets(model, MemoryBudgets(views=1))
    output = model(**inputs, output_attentions=True)
    for name in given(expected):
        torch.testing.assert_close(output[name], expected[name], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_chosen_layers_alone(model: Any, inputs: dict[str, Any]) -> None:
    """transformers takes indices of layers for `output_hidden_states`, and keeps None in the other places."""
    utils = pytest.importorskip("transformers.utils.output_capturing")
    if not hasattr(utils, "selected_hidden_states"):
        pytest.skip("this transformers collects all hidden states")
    expected = model(**inputs, output_hidden_states=True)
    set_memory_budgets(model, MemoryBudgets(views=1))
    output = model(**inputs, output_hidden_states=[-1])
    for name in given(expected):
        assert output[name][:-1] == (None,) * (len(expected[name]) - 1)
        torch.testing.assert_close(output[name][-1], expected[name][-1], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_compiled_as_one_graph(model: Any, inputs: dict[str, Any]) -> None:
    expected = model(**inputs, **EVERYTHING)  # The first request installs transformers' hooks, which no graph can do.
    output = torch.compile(model, fullgraph=True, backend="eager")(**inputs, **EVERYTHING)
    assert given(output) == set(FIELDS)
    for name in FIELDS:
        torch.testing.assert_close(output[name], expected[name], atol=1e-5, rtol=1e-4)


def test_gradients_reach_what_was_collected(model: Any, inputs: dict[str, Any]) -> None:
    output = model(**inputs, **EVERYTHING)
    for name in FIELDS:
        output[name][0].retain_grad()
    sum(tokens.square().sum() for tokens in output.vision_tokens).backward()
    for name in FIELDS:
        assert output[name][0].grad is not None and output[name][0].grad.abs().max() > 0, name


def test_threads_give_what_one_thread_gives(model: Any) -> None:
    """Sizes, requests and gradients differ between the threads, and none sees what another asked for."""
    model.set_attn_implementation("sdpa")
    fresh = copy.deepcopy(model)  # Neither its hooks nor its tables exist yet.
    sizes = [(64, 96), (128, 64), (96, 96), (160, 32)]
    jobs = [(torch.randn(2, 3, *size), index % 2 == 0, index % 4 < 2) for index, size in enumerate(sizes * 6)]

    def run(model: Any, job: tuple[torch.Tensor, bool, bool]) -> Any:
        pixels, wanted, training = job
        with torch.set_grad_enabled(training):
            return model(pixels, output_hidden_states=wanted)

    expected = [run(model, job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(run, [fresh] * len(jobs), jobs))
    for output, wanted in zip(outputs, expected, strict=True):
        assert given(output) == given(wanted)
        torch.testing.assert_close(output.vision_tokens, wanted.vision_tokens, atol=1e-5, rtol=1e-5)
        for name in given(wanted):
            torch.testing.assert_close(output[name], wanted[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model_class", [DeepEncoder, DeepEncoderV2])
def test_the_example_of_a_model_runs(model_class: Any) -> None:
    text = inspect.getdoc(model_class) or ""
    example = doctest.DocTestParser().get_doctest(text.replace("```", ""), {}, model_class.__name__, None, None)
    assert len(example.examples) >= 5
    assert doctest.DocTestRunner().run(example).failed == 0
