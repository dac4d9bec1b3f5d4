import torch
from torch.func import functional_call

from training.reader import ReadingObjective
from training.virtual_pages import crop_position_tables


def test_a_crop_sees_the_distances_of_its_page() -> None:
    torch.manual_seed(0)
    encoder = ReadingObjective().encoder
    tables = crop_position_tables(encoder, 128, 640)
    attention = encoder.sam_encoder.layers[1].attn
    table = tables["sam_encoder.layers.1.attn.rel_pos_h"]
    assert table.shape[0] == 2 * 8 - 1 and len(tables) == 1 + 2 * 2
    # Distance 0 is the middle of both.
    assert torch.equal(table[7], attention.rel_pos_h[39]) and torch.equal(table[0], attention.rel_pos_h[32])
    # A crop of a larger page sees a shorter part of the table.
    assert crop_position_tables(encoder, 128, 1024)["sam_encoder.layers.1.attn.rel_pos_h"].shape[0] == 2 * 5 - 1


def test_whole_pages_see_the_whole_tables() -> None:
    torch.manual_seed(0)
    encoder = ReadingObjective().encoder
    tables = crop_position_tables(encoder, 640, 640)
    for name, table in tables.items():
        assert torch.equal(table, encoder.get_parameter(name))


def test_gradients_reach_the_tables() -> None:
    encoder = ReadingObjective().encoder
    output = functional_call(encoder, crop_position_tables(encoder, 128, 640), (torch.randn(1, 3, 128, 128),))
    output.last_hidden_state.sum().backward()
    gradient = encoder.sam_encoder.layers[1].attn.rel_pos_h.grad
    rows = gradient.abs().sum(1) > 0
    assert rows[32:47].all() and not rows[:32].any() and not rows[47:].any()
