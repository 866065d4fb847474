import re

import pytest

from deepseek_engine import chat_template
from deepseek_engine.chat_template import ChatTemplate
from deepseek_engine.errors import InvalidRequestError, ModelLoadError

USER = [{"role": "user", "content": "<b>hi</b>"}]


def test_a_template_sees_messages_tokens_and_helpers():
    template = ChatTemplate(
        "{{ bos_token }}{% for m in messages %}{{ m | tojson }}{% endfor %}{{ eos_token }}"
        "{% if add_generation_prompt %}>{% endif %}",
        bos_token="<s>",
        eos_token="</s>",
    )
    assert template.render(USER) == '<s>{"role": "user", "content": "<b>hi</b>"}</s>>'


def test_blocks_leave_no_blank_lines_as_in_transformers():
    template = ChatTemplate("{% for m in messages %}\n    {% if true %}\n{{ m.role }}\n    {% endif %}\n{% endfor %}\n")
    assert template.render(USER) == "user\n"


def test_the_date_helper_and_loop_controls_work():
    template = ChatTemplate("{{ strftime_now('%Y') }}{% for m in messages %}{% break %}{% endfor %}")
    assert re.fullmatch(r"20\d\d", template.render(USER))


def test_a_template_that_refuses_the_messages_is_the_callers_error():
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidRequestError, match="roles must alternate") as caught:
        template.render(USER)
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__['os'] }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{{ messages[0].content + 1 }}",
    ],
)
def test_a_template_that_leaves_the_sandbox_or_fails_is_refused(source: str):
    with pytest.raises(InvalidRequestError):
        ChatTemplate(source).render(USER)


def test_output_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chat_template, "MAX_PROMPT_CHARS", 1000)
    with pytest.raises(InvalidRequestError, match="more than 1000 characters"):
        ChatTemplate("{% for i in range(99999) %}{{ messages[0].content }}{% endfor %}").render(USER)


def test_a_template_that_does_not_compile_fails_at_load():
    with pytest.raises(ModelLoadError, match="does not compile"):
        ChatTemplate("{% if %}")
