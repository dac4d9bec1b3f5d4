import numpy as np
import torch

from deepencoder.reading import ReadingHead, ReadingHeadConfig
from deepencoder.reading.alphabet import ALPHABET
from training.corpus import Batches, Stage, crop_page, make_batch
from training.evaluation import edit_distance, evaluate_reading, read_tokens
from training.materials import Materials
from training.pages import PageStyle, draw_page
from training.reader import (
    PATCHES,
    ReadingObjective,
    group_patches,
    page_reader_config,
    pair_loss,
    slots_by_patch,
)
from training.targets import CELLS, SLOTS, character_slots, token_texts


def test_the_page_reader_is_small_and_complete() -> None:
    config = page_reader_config()
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in ReadingObjective(config).encoder.parameters())
    assert 3e6 < count < 6e6  # at most 12 MB in float16
    assert config.sam_config.global_attn_indexes and config.sam_config.downsample_channels


def test_slots_are_ordered_by_cell_or_by_patch() -> None:
    slots = torch.arange(CELLS * CELLS * SLOTS).view(CELLS, CELLS, SLOTS)
    by_patch = slots_by_patch(slots)
    head = ReadingHead(ReadingHeadConfig(token_dim=8, hidden_size=4, intermediate_size=16))
    assert by_patch.shape == (PATCHES**2, head.config.slots_per_patch)
    assert torch.equal(head.slots_by_cell(by_patch[..., None])[..., 0], slots)
    # Patch 1 is the second of the first row: cells of rows 0 and 1, columns 2 and 3.
    assert torch.equal(by_patch[1], slots[:2, 2:4].flatten())


def test_the_head_reads_every_slot() -> None:
    logits = ReadingHead(ReadingHeadConfig(token_dim=8, hidden_size=4, intermediate_size=16))(torch.randn(3, 8))
    assert logits.shape == (3, CELLS, CELLS, SLOTS, len(ALPHABET))


def test_patches_are_grouped_by_token() -> None:
    patches = torch.arange(8 * 12).view(1, 8, 12, 1)
    grouped = group_patches(patches)
    assert grouped.shape == (1, 2, 3, 16, 1)
    assert torch.equal(grouped[0, 1, 2, :, 0].view(4, 4), patches[0, 4:, 8:, 0])


def test_perfect_logits_read_the_page(materials: Materials) -> None:
    page = draw_page(1, materials, PageStyle(256, 256, (16, 20), cut=False))
    slots = torch.from_numpy(character_slots(page)).flatten(0, 1)
    logits = torch.nn.functional.one_hot(slots, len(ALPHABET)).float()
    assert read_tokens(logits) == [text for row in token_texts(page) for text in row]


def test_edit_distance() -> None:
    for one, other, expected in (("kitten", "sitting", 3), ("", "abc", 3), ("abc", "abc", 0), ("abc", "ca", 3)):
        assert edit_distance(list(map(ord, one)), list(map(ord, other))) == expected
    assert edit_distance([1, 3], [1, 2, 3], [True, False, True]) == 0
    assert edit_distance([1], [1, 2, 3], [True, False, True]) == 1 == edit_distance([1, 2, 4], [1, 2, 3])


def test_an_untrained_reader_reads_nothing_right(materials: Materials) -> None:
    torch.manual_seed(0)
    pages = {20: [draw_page(1, materials, PageStyle(128, 128, (20, 20), cut=False, varied=False))]}
    result = evaluate_reading(ReadingObjective().eval(), pages)
    characters, accuracy, inner = result["20"]
    assert characters > 2 and accuracy < 0.2 and inner < 0.5


def test_pairs_are_closer_than_others() -> None:
    vectors = torch.eye(4)
    assert pair_loss(torch.cat([vectors, vectors])) < 0.01
    assert pair_loss(torch.cat([vectors, vectors.roll(1, 0)])) > 5
    assert pair_loss(torch.cat([vectors, vectors]), others=vectors) > 0.5  # Other pages look the same.


def test_a_batch_follows_from_its_number(folder) -> None:
    stages = (Stage(2, 64, 2, (14, 20)), Stage(3, 128, 4, (14, 20), damage=1.0, pairs=3, pair_side=192, pairs_every=2))
    one, other = Batches(str(folder), stages), Batches(str(folder), stages)
    assert len(one) == 5 and one[1]["pixels"].shape == (2, 3, 64, 64) and one[3]["pixels"].shape == (4, 3, 128, 128)
    assert torch.equal(one[3]["pixels"], other[3]["pixels"]) and not torch.equal(one[4]["pixels"], other[2]["pixels"])
    assert one[3]["slots"].shape == (4, 2, 2, CELLS, CELLS, SLOTS) and one[3]["regions"].shape == (4, 2, 2)
    pairs = one[2]
    assert pairs["has_pairs"] and not one[3]["has_pairs"] and pairs["pixels"].shape == (6, 3, 192, 192)
    assert torch.equal(pairs["pixels"], other[2]["pixels"])


def test_crops_hold_the_characters_that_lie_in_them(materials: Materials) -> None:
    page = draw_page(1, materials, PageStyle(256, 256, (16, 20), cut=False, varied=False))
    crops = [crop_page(page, left, top, 128) for top in (0, 128) for left in (0, 128)]
    assert sum(len(crop.characters) for crop in crops) == len(page.characters)
    whole, parts = character_slots(page), np.stack([character_slots(crop) for crop in crops])
    parts = parts.reshape(2, 2, 2, 2, *parts.shape[3:]).swapaxes(1, 2).reshape(whole.shape)
    assert (parts == whole).all()
    assert (np.asarray(crops[3].image) == np.asarray(page.image)[128:, 128:]).all()


def test_pixels_of_a_batch_are_those_of_the_pages(materials: Materials) -> None:
    page = draw_page(1, materials, PageStyle(128, 64))
    pixels = make_batch([page])["pixels"]
    assert (pixels[0].permute(1, 2, 0).numpy() == np.asarray(page.image)).all()


def test_processes_share_the_steps_of_a_stage(folder) -> None:
    stages = (Stage(2, 64, 2, (14, 20)), Stage(1, 128, 2, (14, 20)))
    batches = Batches(str(folder), stages, processes=2)
    assert [batches.stage(number)[1].side for number in range(len(batches))] == [64, 64, 64, 64, 128, 128]
    pixels = [batches[number]["pixels"] for number in range(4)]
    assert len({part.numpy().tobytes() for part in pixels}) == 4
