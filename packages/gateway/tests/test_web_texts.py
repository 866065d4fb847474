"""The catalogue is complete, and the pages say nothing that is not in it."""

import re
from importlib.resources import files

import pytest

from deepseek_gateway.web.messages import Language, load_messages, preferred_language

WEB = files("deepseek_gateway.web")
TEMPLATES = {entry.name: entry.read_text("utf-8") for entry in WEB.joinpath("templates").iterdir()}
SCRIPTS = {
    entry.name: entry.read_text("utf-8") for entry in WEB.joinpath("static").iterdir() if entry.name.endswith(".js")
}
NAMES = {"deepseek-gateway", "English", "中文", "admin", "create", "HTTP"}
"""What is called the same in every language."""


def test_every_message_is_there_in_every_language_with_the_same_values() -> None:
    for key, texts in load_messages().texts.items():
        assert texts.keys() == set(Language), key
        values = {language: sorted(re.findall(r"\{(\w+)\}", text)) for language, text in texts.items()}
        assert values[Language.ENGLISH] == values[Language.CHINESE], key
        assert all(text.strip() for text in texts.values()), key


def test_every_message_that_a_page_names_is_there() -> None:
    messages = load_messages()
    for name, template in TEMPLATES.items():
        for key in re.findall(r"""\bt\(\s*["']([\w.-]+)["']\s*[,)]""", template):
            assert messages.has(key), f"{name}: {key}"
    for entry in WEB.joinpath("views").iterdir():
        if entry.name.endswith(".py"):
            for key in re.findall(r"""\.text\(\s*"([\w.-]+)"\s*[,)]""", entry.read_text("utf-8")):
                assert messages.has(key), f"{entry.name}: {key}"
    for name, script in SCRIPTS.items():
        for key in re.findall(r"""\b(?:text|message)\(\s*"(\w+)"\s*[,)]""", script):
            assert messages.has(f"script.{key}"), f"{name}: {key}"


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_holds_no_text_of_its_own(name: str) -> None:
    text = re.sub(r"\{#.*?#\}|\{%.*?%\}|\{\{.*?\}\}", "", TEMPLATES[name], flags=re.DOTALL)
    text = re.sub(r"<pre.*?</pre>|<svg.*?</svg>|<!doctype html>", "", text, flags=re.DOTALL)
    for attribute in re.findall(r'\s(?:title|alt|placeholder|aria-label)="([^"]*)"', text):
        assert not re.search(r"[A-Za-z]{2}", attribute.replace("dsk_", "").replace("key.*", "").replace("req-…", "")), (
            attribute
        )
    bare = re.sub(r"<[^>]*>", " ", text)
    words = set(re.findall(r"[^\W\d_][\w-]+", bare)) - NAMES
    assert not words


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_has_no_script_and_no_style_within(name: str) -> None:
    template = TEMPLATES[name]
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)|javascript:|\|\s*safe\b", template)
    for form in re.findall(r'<form[^>]*method="post".*?</form>', template, flags=re.DOTALL):
        assert "token(page)" in form, form[:200]


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_make_no_html_of_texts(name: str) -> None:
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", SCRIPTS[name])


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("", "en"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en-GB,zh;q=0.9", "en"),
        ("fr, zh-TW;q=0.4, en;q=0.3", "zh"),
        ("fr", "en"),
        ("zh;q=x, en;q=0.1", "en"),
        (",;q=,;;", "en"),
    ],
)
def test_the_browsers_language_is_taken_by_weight(header: str, language: str) -> None:
    assert preferred_language(header) == language
