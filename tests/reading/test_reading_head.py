import pytest
import torch

from deepencoder.reading import ReadingHead, ReadingHeadConfig


def small_config() -> ReadingHeadConfig:
    return ReadingHeadConfig(
        token_dim=6, hidden_size=4, intermediate_size=8, patches=2, cells=4, slots=2, alphabet="\0abc"
    )


def test_slots_are_ordered_as_they_lie_in_the_box() -> None:
    head = ReadingHead(small_config())
    # A patch is a quarter of the box, with 2 x 2 cells of two slots each.
    values = torch.arange(4 * 8).view(4, 8, 1)
    cells = head.slots_by_cell(values)[..., 0]
    assert cells.shape == (4, 4, 2)
    assert cells[0, 0].tolist() == [0, 1] and cells[0, 1].tolist() == [2, 3]  # the first patch's first row
    assert cells[1, 0].tolist() == [4, 5]  # its second row
    assert cells[0, 2].tolist() == [8, 9]  # the second patch, to the right
    assert cells[2, 0].tolist() == [16, 17]  # the third one, below


def test_read_gives_the_most_probable_characters() -> None:
    torch.manual_seed(0)
    head = ReadingHead(small_config())
    tokens = torch.randn(3, 6)
    read, best = head.read(tokens), head(tokens).argmax(-1)
    assert read.shape == (3, 4, 4, 2)
    for place in torch.cartesian_prod(*map(torch.arange, read.shape)).tolist():
        assert read[tuple(place)] == ("", "a", "b", "c")[int(best[tuple(place)])]
    assert len(set(read.ravel().tolist())) > 2


def test_a_head_is_saved_and_loaded(tmp_path: object) -> None:
    torch.manual_seed(0)
    head = ReadingHead(small_config())
    head.save_pretrained(tmp_path)
    tokens = torch.randn(2, 6)
    loaded = ReadingHead.from_pretrained(tmp_path)
    assert loaded.config.alphabet == "\0abc"
    torch.testing.assert_close(loaded(tokens), head(tokens))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"patches": 3}, "patches"),
        ({"slots": 0}, "slots"),
        ({"token_dim": 10**9}, "token_dim"),
        ({"alphabet": "\0aa"}, "alphabet"),
        ({"alphabet": "\0a\x1b"}, "alphabet"),
        ({"alphabet": ""}, "alphabet"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ReadingHeadConfig(**fields)


def test_tokens_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match="token_dim=6"):
        ReadingHead(small_config())(torch.randn(2, 7))
