import numpy as np
import torch

from training.alphabet import ALPHABET
from training.corpus import Batches, Stage, make_batch
from training.evaluation import edit_distance, evaluate_reading, read_tokens
from training.materials import Materials
from training.pages import PageStyle, draw_page
from training.reader import PATCHES, ReadingHead, ReadingObjective, page_reader_config, pair_loss
from training.targets import CELLS, SLOTS, character_slots, token_texts


def test_the_page_reader_is_small_and_complete() -> None:
    config = page_reader_config()
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in ReadingObjective(config).encoder.parameters())
    assert 3e6 < count < 6e6  # at most 12 MB in float16
    assert config.sam_config.global_attn_indexes and config.sam_config.downsample_channels


def test_the_head_orders_cells_as_they_lie_in_the_box() -> None:
    head = ReadingHead(8, hidden_size=4, num_layers=0)
    cells = CELLS // PATCHES
    # A classifier whose logits say which patch and which of its slots they belong to.
    with torch.no_grad():
        head.classifier.weight.zero_()
        slots = torch.arange(cells * cells * SLOTS, dtype=torch.float32)
        head.classifier.bias.copy_(slots.repeat_interleave(len(ALPHABET)))
        head.classifier.weight[:, 0] = 1000
    patches = torch.zeros(1, PATCHES**2, 4)
    patches[0, :, 0] = torch.arange(PATCHES**2)
    logits = head.classify(patches)[0, ..., 0]
    assert logits.shape == (CELLS, CELLS, SLOTS)
    for row in range(CELLS):
        for column in range(CELLS):
            patch = (row // cells) * PATCHES + column // cells
            within = (row % cells) * cells + column % cells
            expected = [1000 * patch + within * SLOTS + slot for slot in range(SLOTS)]
            assert logits[row, column].tolist() == expected


def test_perfect_logits_read_the_page(materials: Materials) -> None:
    page = draw_page(1, materials, PageStyle(256, 256, (16, 20), cut=False))
    slots = torch.from_numpy(character_slots(page)).flatten(0, 1)
    logits = torch.nn.functional.one_hot(slots, len(ALPHABET)).float()
    assert read_tokens(logits) == [text for row in token_texts(page) for text in row]


def test_edit_distance() -> None:
    for one, other, expected in (("kitten", "sitting", 3), ("", "abc", 3), ("abc", "abc", 0), ("abc", "ca", 3)):
        assert edit_distance(list(map(ord, one)), list(map(ord, other))) == expected


def test_an_untrained_reader_reads_nothing_right(materials: Materials) -> None:
    torch.manual_seed(0)
    pages = {20: [draw_page(1, materials, PageStyle(128, 128, (20, 20), cut=False, varied=False))]}
    result = evaluate_reading(ReadingObjective().eval(), pages)
    characters, accuracy = result["20"]
    assert characters > 2 and accuracy < 0.2


def test_pairs_are_closer_than_others() -> None:
    vectors = torch.eye(4)
    assert pair_loss(torch.cat([vectors, vectors])) < 0.01
    assert pair_loss(torch.cat([vectors, vectors.roll(1, 0)])) > 5


def test_a_batch_follows_from_its_number(folder) -> None:
    stages = (Stage(2, 64, 2, (14, 20)), Stage(3, 128, 4, (14, 20), damage=1.0))
    one, other = Batches(str(folder), stages), Batches(str(folder), stages)
    assert len(one) == 5 and one[1]["pixels"].shape == (2, 3, 64, 64) and one[2]["pixels"].shape == (4, 3, 128, 128)
    assert torch.equal(one[4]["pixels"], other[4]["pixels"]) and not torch.equal(one[4]["pixels"], one[3]["pixels"])
    assert one[4]["slots"].shape == (4, 2, 2, CELLS, CELLS, SLOTS) and one[4]["regions"].shape == (4, 2, 2)


def test_pixels_of_a_batch_are_those_of_the_pages(materials: Materials) -> None:
    page = draw_page(1, materials, PageStyle(128, 64))
    pixels = make_batch([page])["pixels"]
    assert (pixels[0].permute(1, 2, 0).numpy() == np.asarray(page.image)).all()


def test_processes_share_the_steps_of_a_stage(folder) -> None:
    stages = (Stage(2, 64, 2, (14, 20)), Stage(1, 128, 2, (14, 20)))
    batches = Batches(str(folder), stages, processes=2)
    assert [batches.stage(number).side for number in range(len(batches))] == [64, 64, 64, 64, 128, 128]
    pixels = [batches[number]["pixels"] for number in range(4)]
    assert len({part.numpy().tobytes() for part in pixels}) == 4
