from deepencoder.reading.alphabet import ALPHABET, EMPTY, clean_text, encode_text


def test_every_character_has_one_index() -> None:
    assert len(set(ALPHABET)) == len(ALPHABET) and EMPTY == 0
    assert encode_text(ALPHABET) == list(range(len(ALPHABET)))


def test_text_is_brought_into_the_alphabet() -> None:
    assert clean_text("a\u00a0b\n c") == "a b c"
    assert clean_text("na\u00efve caf\u00e9 \u2014 \u4f60 x") == "naive caf\u00e9 \u2014 x"
