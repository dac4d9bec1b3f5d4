from deepencoder.reading.reading_order import TextLine, in_reading_order


def lines(*rows: tuple[str, float, float, float]) -> list[TextLine]:
    return [TextLine(*row) for row in rows]


def order(given: list[TextLine]) -> str:
    return "".join(line.text for line in in_reading_order(given))


def test_lines_are_read_from_top_to_bottom() -> None:
    assert order(lines(("b", 0, 9, 2), ("a", 0, 9, 1), ("c", 0, 4, 3))) == "abc"


def test_columns_are_read_one_after_the_other_between_what_spans_them() -> None:
    left = [(text, 0, 9, height) for text, height in zip("bcd", (2, 3, 4), strict=True)]
    right = [(text, 12, 20, height) for text, height in zip("efg", (2.2, 3.2, 4.2), strict=True)]
    page = lines(("h", 0, 20, 6), *right, *left, ("a", 3, 18, 1))
    assert order(page) == "abcdefgh"


def test_three_columns() -> None:
    columns = [
        (text, 10 * index, 10 * index + 8, height)
        for index, column in enumerate(("ab", "cd", "ef"))
        for text, height in zip(column, (1, 2), strict=True)
    ]
    assert order(lines(*columns)) == "abcdef"


def test_indented_lines_are_no_column() -> None:
    page = lines(("a", 0, 3, 1), ("b", 0, 3, 2), ("c", 5, 12, 3), ("d", 5, 12, 4), ("e", 0, 3, 5))
    assert order(page) == "abcde"
