"""Text that may hold anything, in Markdown."""

from limbeck.model.markdown import escaped, one_line, table


def test_one_line_drops_what_a_terminal_obeys_and_keeps_what_persian_needs():
    assert one_line("a\x1b[31m\nb\x07") == "a [31m b"
    assert one_line("می\u200cخواهم") == "می\u200cخواهم"
    assert one_line("abcdef", 4) == "abc…"


def test_nothing_in_a_text_is_markup():
    assert escaped("a|b [x](y) <i> `c` *d* #e\nf") == r"a\|b \[x\](y) \<i\> \`c\` \*d\* \#e f"
    assert escaped("کتاب\u200cها") == "کتاب\u200cها"


def test_a_table_has_a_line_for_each_row_whatever_its_cells_hold():
    assert table(["a", "b"], [["1|2", "x\ny"], ["", "é"]]).splitlines() == [
        "| a | b |",
        "| --- | ---: |",
        r"| 1\|2 | x y |",
        "|  | é |",
    ]
