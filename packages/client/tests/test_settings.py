"""Settings: arguments first, then variables, then defaults; a bad value is named at construction."""

import pytest

from deepseek_client import ConfigurationError, DeepSeek
from deepseek_client.settings import Timeout, as_timeout, read_settings


def test_arguments_win_over_variables_and_variables_over_defaults(monkeypatch):
    assert read_settings().base_url == "http://127.0.0.1:8080/v1"
    assert read_settings().api_key is None
    monkeypatch.setenv("DEEPSEEK_BASE_URL", "https://api.deepseek.com")
    monkeypatch.setenv("DEEPSEEK_API_KEY", " sk-variable\n")
    monkeypatch.setenv("DEEPSEEK_MODEL", "m1")
    settings = read_settings()
    assert (settings.base_url, settings.api_key, settings.default_model) == (
        "https://api.deepseek.com",
        "sk-variable",
        "m1",
    )
    settings = read_settings(base_url="http://h:1/x/", api_key="", default_model="m2")
    assert (settings.base_url, settings.api_key, settings.default_model) == ("http://h:1/x", None, "m2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "api.deepseek.com"}, "base_url='api.deepseek.com' must start with http"),
        ({"base_url": "ftp://x"}, "must start with http"),
        ({"base_url": "http://x:port"}, "base_url='http://x:port'"),
        ({"base_url": "http://x/v1?a=b"}, "without \\? and #"),
        ({"api_key": "a\r\nx: y"}, "holds characters that no key has"),
        ({"api_key": "schlüssel"}, "holds characters that no key has"),
        ({"profile": "other"}, "profile='other' must be one of auto, gateway, deepseek, openai"),
        ({"max_retries": -1}, "max_retries=-1"),
        ({"timeout": 0}, "total_s=0.0 must be a positive number"),
    ],
)
def test_a_bad_value_is_refused_by_its_name_and_never_quotes_the_key(options, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        DeepSeek(**options)
    if "api_key" in options:
        assert options["api_key"] not in str(caught.value)


def test_a_number_is_a_limit_for_the_whole_call_and_none_waits_for_tokens_without_one():
    assert as_timeout(5) == Timeout(total_s=5.0)
    assert as_timeout(None) == Timeout(first_token_s=None, idle_s=None)
    assert as_timeout(Timeout(idle_s=1)) == Timeout(idle_s=1)


def test_with_options_keeps_what_it_does_not_change():
    with DeepSeek(base_url="http://h", api_key="k" * 20, max_retries=5) as client:
        copy = client.with_options(timeout=3)
        assert copy._core.settings.max_retries == 5
        assert copy._core.settings.timeout.total_s == 3
        assert copy._core.knowledge is client._core.knowledge
        assert client.with_options(base_url="http://other")._core.knowledge is not client._core.knowledge
        assert repr(copy) == "DeepSeek(base_url='http://h/v1', api_key='...kkkk')"
