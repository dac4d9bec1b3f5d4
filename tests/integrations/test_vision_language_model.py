"""The example of a vision-language model: prompts, gradients, adapters, files, processes, and ready-made tokens."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from deepencoder import DeepEncoder, insert_vision_tokens, replace_vision_tower
from deepencoder.conversion.from_original import convert_to_folder
from deepencoder.extraction import ExtractionSettings, IdentifiedModel, RunOptions, extract_features
from examples import vision_language_model as example

from ..conftest import ROOT, randomize, report_difference
from .peers import IMAGE_TOKEN as STOCK_IMAGE_TOKEN
from .peers import SIDE, tiny_unlimited_ocr

WORDS = ["read", "the", "page", "and", "answer"]
PROMPTS = [f"read {example.IMAGE_TOKEN} the page", f"{example.IMAGE_TOKEN} read {example.IMAGE_TOKEN}"]
SMALL = {"tile_size": SIDE, "crop_to_patches": True}
GREEDY = {"max_new_tokens": 6, "do_sample": False}


def make_pages() -> list[Image.Image]:
    """Return pages with two tiles, with one and two, and without."""
    torch.manual_seed(3)
    sizes = [(2 * SIDE, SIDE), (SIDE, 2 * SIDE), (SIDE // 2, SIDE // 2)]
    return [Image.fromarray(torch.randint(0, 256, (*size, 3), dtype=torch.uint8).numpy()) for size in sizes]


def make_reader() -> tuple[Any, Any]:
    model, processor = example.make_tiny_reader(WORDS)
    for name, value in SMALL.items():
        setattr(processor.image_processor, name, value)
    return randomize(model), processor


def test_each_page_has_its_placeholders() -> None:
    model, processor = make_reader()
    inputs = processor(make_pages(), PROMPTS)
    tokens = model.get_image_features(
        **{name: inputs[name] for name in inputs if "input" not in name and name != "attention_mask"}
    )
    is_placeholder = inputs["input_ids"] == model.config.image_token_id
    assert is_placeholder.sum(dim=1).tolist() == [len(tokens[0]), len(tokens[1]) + len(tokens[2])]
    assert len({len(part) for part in tokens}) == 3
    words = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0][inputs["attention_mask"][0].bool()])
    assert words == ["read", *["<image>"] * len(tokens[0]), "the", "page"]
    with pytest.raises(ValueError, match="3 times <image>, but there are 2 images"):
        processor(make_pages()[:2], PROMPTS)


@torch.no_grad()
def test_the_language_model_reads_the_vision_tokens() -> None:
    """Compare with embeddings that are put together one by one."""
    model, processor = make_reader()
    inputs = processor(make_pages(), PROMPTS)
    encoded = model.vision_tower(
        **{name: inputs[name] for name in inputs if name in processor.image_processor.model_input_names}
    )
    tokens = iter([token for page in encoded.vision_tokens for token in page])
    rows = []
    for row in inputs["input_ids"].tolist():
        for token in row:
            is_image = token == model.config.image_token_id
            rows.append(model.connector(next(tokens)) if is_image else model.get_input_embeddings().weight[token])
    embeds = torch.stack(rows).unflatten(0, inputs["input_ids"].shape)
    assert next(tokens, None) is None
    expected = model.language_model(inputs_embeds=embeds, attention_mask=inputs["attention_mask"]).logits
    report_difference("logits", model(**inputs).logits, expected)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_parameter_is_trained(checkpointing: bool) -> None:
    model, processor = make_reader()
    inputs = processor(make_pages()[2:], PROMPTS[:1])
    if checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable()
        assert model.vision_tower.sam_encoder.layers[0].gradient_checkpointing
        assert model.language_model.model.layers[0].gradient_checkpointing
    model.train()(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_adapters_in_both_parts(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model, processor = make_reader()
    inputs = processor(make_pages(), PROMPTS)
    targets = r"language_model.*\.(q_proj|v_proj)|vision_tower.*\.(qkv|qkv_proj)"
    config = peft.LoraConfig(r=2, target_modules=targets, modules_to_save=["connector"], init_lora_weights=False)
    tuned = peft.get_peft_model(model, config).eval()
    names = [name for name, parameter in tuned.named_parameters() if parameter.requires_grad]
    for part in ("language_model", "vision_tower.sam_encoder", "vision_tower.clip_encoder", "connector"):
        assert any(part in name for name in names), part
    tuned(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert all(parameter.grad is not None for parameter in tuned.parameters() if parameter.requires_grad)
    expected = tuned(**inputs).logits
    tuned.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(make_reader()[0], tmp_path).eval()
    torch.testing.assert_close(loaded(**inputs).logits, expected)
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(merged(**inputs).logits, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_saved_and_loaded_by_the_auto_classes(tmp_path: Path) -> None:
    model, processor = make_reader()
    inputs = processor(make_pages(), PROMPTS)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(loaded) is example.PageReader and type(loaded.vision_tower) is DeepEncoder
    again = AutoProcessor.from_pretrained(tmp_path)(make_pages(), PROMPTS)
    assert again.keys() == inputs.keys() and all(torch.equal(again[name], inputs[name]) for name in inputs)
    assert torch.equal(loaded(**again).logits, model(**inputs).logits)
    half = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert half(**inputs).logits.isfinite().all()


def extract_tokens(folder: Path, encoder: str, pages: list[Image.Image]) -> list[torch.Tensor]:
    """Encode pages with `extract`, and read the vision tokens back from the shards."""
    datasets = pytest.importorskip("datasets")
    sources = []
    for index, page in enumerate(pages):
        sources.append(str(folder / f"page-{index}.png"))
        page.save(sources[-1])
    found = IdentifiedModel.find(encoder)
    settings = ExtractionSettings(
        tuple(sources), encoder, found.identity, mode=None, outputs=("vision_tokens",), dtype="float32"
    )
    output = folder / "corpus"
    extract_features(settings, output, lambda: (found.load(), found.load_image_processor()), RunOptions(workers=0))
    rows = datasets.load_dataset(str(output), split="train", cache_dir=str(folder / "cache")).with_format("torch")
    by_source = {Path(row["source"]).name: row["vision_tokens"] for row in rows}
    return [torch.as_tensor(by_source[Path(source).name]) for source in sources]


@torch.no_grad()
def test_reading_stored_tokens(tmp_path: Path) -> None:
    model, processor = make_reader()
    pages, inputs = make_pages(), processor(make_pages(), PROMPTS)
    model.vision_tower.save_pretrained(tmp_path / "encoder")
    processor.image_processor.save_pretrained(tmp_path / "encoder")
    tokens = extract_tokens(tmp_path, str(tmp_path / "encoder"), pages)
    expected = model.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :]
    embeds = model.embed_prompt(inputs["input_ids"], tokens)
    report_difference("logits", model(inputs_embeds=embeds).logits, model(**inputs | {"attention_mask": None}).logits)
    found = model.generate(inputs_embeds=embeds, attention_mask=inputs["attention_mask"], **GREEDY)
    assert torch.equal(found, expected) and len(found.unique()) > 1


@torch.no_grad()
def test_unlimited_ocr_reads_stored_tokens(tmp_path: Path) -> None:
    """Its encoder, converted by itself, encodes the pages; the language model reads them later."""
    model, (_, processor) = tiny_unlimited_ocr(), make_reader()
    model.save_pretrained(tmp_path / "original")
    convert_to_folder(tmp_path / "original", tmp_path / "encoder")
    processor.image_processor.save_pretrained(tmp_path / "encoder")
    pages = make_pages()
    tokens = extract_tokens(tmp_path, str(tmp_path / "encoder"), pages)
    longest = max(map(len, tokens))
    ids = torch.tensor([[0] * (longest - len(part)) + [2, *[STOCK_IMAGE_TOKEN] * len(part), 7] for part in tokens])
    mask = (ids != 0).long()
    prepared = processor.image_processor(pages, return_tensors="pt")
    grids = {name: prepared[name].tolist() for name in ("num_local_patches", "patches_grid")}
    expected = replace_vision_tower(model).generate(
        input_ids=ids, attention_mask=mask, **{**prepared, **grids}, **GREEDY
    )
    embeds = insert_vision_tokens(model.get_input_embeddings()(ids), ids, tokens, model.config.image_token_id)
    found = model.generate(inputs_embeds=embeds, attention_mask=mask, **GREEDY)
    assert torch.equal(found, expected[:, ids.shape[1] :]) and len(found.unique()) > 1


def test_two_processes_with_different_numbers_of_tiles() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.programs.page_reader_ranks"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_program_learns(capsys: pytest.CaptureFixture[str]) -> None:
    example.main()
    losses = [float(line.rpartition(" ")[2]) for line in capsys.readouterr().out.splitlines() if "loss" in line]
    assert len(losses) == 4 and losses[-1] < 0.5 * losses[0]
