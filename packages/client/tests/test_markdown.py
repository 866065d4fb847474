"""What `deepseek chat` makes of Markdown, however its pieces are cut."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_client.terminal.markdown import MarkdownStyler

STYLES = {"1": "B", "2": "D", "3": "I", "4": "U", "36": "C", "0": "-"}


def show(*pieces):
    """The pieces as a terminal shows them, styles as <B> bold, <I> italic, <C> code, <D> dim, <-> none."""
    styler = MarkdownStyler()
    shown = "".join([styler.feed(piece) for piece in pieces]) + styler.finish()
    return re.sub("\x1b\\[(\\d+)m", lambda match: f"<{STYLES[match[1]]}>", shown)


CASES = [
    ("Hello", "Hello"),
    ("a **b** c", "a <B>b<-> c"),
    ("*i* and _j_ and `x*y*`", "<I>i<-> and <I>j<-> and <C>x*y*<->"),
    ("snake_case_name 2 * 3 * 4", "snake_case_name 2 * 3 * 4"),
    ("***both***!", "<B><I>both<->!"),
    ("# Title\ntext", "<B><U>Title<->\ntext"),
    ("## Part\n", "<B>Part<->\n"),
    ("#hash and #1", "#hash and #1"),
    ("- a\n  * **b**\n1. c", "• a\n  • <B>b<->\n1. c"),
    ("> so\nno", "<D>│<-> <I>so<->\nno"),
    ("a\n\n---\nb", f"a\n\n<D>{'─' * 40}<->\nb"),
    ("```python\nx = **y\n# z\n```\nend", "<D>── python ──<->\n<C>x = **y\n# z\n<-><D>──<->\nend"),
    ("~~~\n```\n~~~\n", "<D>── code ──<->\n<C>```\n<-><D>──<->\n"),
    ("```\ncut", "<D>── code ──<->\n<C>cut<->"),
    ("cut **here", "cut <B>here<->"),
    ("| a | b |\n|---|---|\n", "| a | b |\n|---|---|\n"),
    ("-5 degrees\n-", "-5 degrees\n-"),
]


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_it_is_shown_in_styles_whole_and_letter_by_letter(text, expected):
    assert show(text) == expected
    assert show(*text) == expected


@given(st.text(alphabet="ab *_`#->1.\n~世", max_size=60), st.integers(0, 60))
def test_where_a_text_is_cut_changes_nothing(text, at):
    assert show(text[:at], text[at:]) == show(text) == show(*text)


def test_words_are_not_held_back():
    styler = MarkdownStyler()
    assert [styler.feed(piece) for piece in ("The", " ans", "wer **", "is", "** 4")] == [
        "The",
        " ans",
        "wer ",
        "\x1b[1mis",
        "\x1b[0m 4",
    ]
