"""An error for the user is one line, whatever a file or a field is called."""

import pytest

from limbeck.model.errors import UserError, nearest, one_of


def test_line_breaks_and_control_characters_are_shown_and_other_scripts_are_left():
    error = UserError("a\nb\r\x00\x0b\x85\u2028 فیلد «می‌خواهم» 🙂 \\n")
    assert str(error) == "a\\nb\\r\\x00\\x0b\\x85\\u2028 فیلد «می‌خواهم» 🙂 \\n"
    assert len(str(error).splitlines()) == 1


def test_the_nearest_name_is_named_and_the_legal_ones_are_listed():
    assert nearest("colr", ["colour", "size"]) == "; did you mean 'colour'?" and nearest("x", ["colour"]) == ""
    assert one_of("field", "size", ["colour", "size"]) == "size"
    with pytest.raises(UserError, match="unknown field 'colr': one of colour, size; did you mean 'colour'"):
        one_of("field", "colr", ["colour", "size"])
