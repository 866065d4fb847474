"""Keys as text and as hashes."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_gateway.auth.keys import hash_secret, new_key, parse_key
from deepseek_gateway.auth.pepper import create_pepper, load_pepper
from deepseek_gateway.errors import ConfigurationError


def test_a_key_has_the_published_form_and_comes_back_from_its_text() -> None:
    key = new_key()
    assert re.fullmatch(r"dsk_[0-9A-Za-z]{12}_[0-9A-Za-z]{43}_[0-9A-Za-z]{6}", key.text)
    assert parse_key(key.text) == key
    assert key.secret not in repr(key)


@given(at=st.integers(0, 67), character=st.characters())
def test_one_changed_character_makes_a_key_invalid(at: int, character: str) -> None:
    text = new_key().text
    changed = text[:at] + character + text[at + 1 :]
    assert parse_key(changed) is None or changed == text


@given(st.text())
def test_no_text_breaks_the_parser(text: str) -> None:
    assert parse_key(text) is None


def test_hashes_depend_on_secret_id_and_pepper() -> None:
    key, other = new_key(), new_key()
    same_secret = type(key)(other.public_id, key.secret)
    hashes = {hash_secret(b"pepper", each) for each in (key, other, same_secret)} | {hash_secret(b"salt", key)}
    assert len(hashes) == 4
    assert key.secret not in hash_secret(b"pepper", key)


def test_the_pepper_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "pepper"
    create_pepper(path)
    first = load_pepper(path, None)
    create_pepper(path)
    assert load_pepper(path, None) == first
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [(None, 0o600, "is missing"), (b"x" * 32, 0o644, "chmod 600"), (b"short", 0o600, "at least 16")],
)
def test_an_unusable_pepper_is_refused(tmp_path: Path, content: bytes | None, mode: int, message: str) -> None:
    path = tmp_path / "pepper"
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)
    with pytest.raises(ConfigurationError, match=message):
        load_pepper(path, None)
