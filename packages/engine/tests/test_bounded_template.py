"""Templates that never end, or eat all memory, and the conversations after them."""

import gc
import subprocess
import threading
import weakref
from pathlib import Path

import pytest

from deepseek_engine.chat import bounded_template
from deepseek_engine.chat.bounded_template import BoundedTemplate, open_template
from deepseek_engine.chat_template import MAX_TEMPLATE_CHARS, ChatTemplate
from deepseek_engine.errors import InvalidRequestError, ModelLoadError, QueueFullError
from deepseek_engine.tokenizer import load_tokenizer

HI = [{"role": "user", "content": "hi"}]
BOMBS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a power": "{{ messages[0].content|length ** 10 ** 10 }}" + "{{ (9 + messages|length) ** (10 ** 9) }}",
    "a constant": "{{ 9 ** (10 ** 9) }}",
    "a long text": "{{ messages[0].content * 10 ** 11 }}",
    "padding": "{{ messages[0].content.center(10 ** 11) }}",
    "growing lists": "{% set n = namespace(x=[1]) %}{% for a in range(99999) %}{% set n.x = n.x + n.x %}{% endfor %}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_ends_within_its_bounds_and_the_next_conversation_is_served(name: str):
    template = BoundedTemplate(
        "{% if messages[0].content == 'boom' %}" + BOMBS[name] + "{% endif %}{{ messages[0].content }}", cpu_s=0.5
    )
    with pytest.raises(InvalidRequestError) as caught:
        template.render([{"role": "user", "content": "boom"}])
    assert caught.value.param == "messages"
    if name != "a constant":  # that one is computed whatever the messages are
        assert template.render(HI) == "hi"
    template.close()


def test_it_renders_what_the_template_in_this_process_renders():
    source = (
        "{{ bos_token }}{% for m in messages %}{{ m | tojson }}{{ x }}{% endfor %}{% for c in messages[0].tool_calls %}"
    )
    source += "{{ 'a' + c.function.arguments }}{{ c.function.arguments | tojson }}{% endfor %}"
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    messages = [
        {
            "role": "assistant",
            "content": "ü\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
            "tool_calls": [call],
        }
    ]
    bounded = BoundedTemplate(source, bos_token="<s>")
    here = ChatTemplate(source, bos_token="<s>")
    assert bounded.render(messages, {"x": "<x>"}) == here.render(messages, {"x": "<x>"})
    assert bounded.variables == here.variables == {"bos_token", "messages", "x", "c", "m"}
    bounded.close()


def test_a_refusal_keeps_its_reason():
    template = BoundedTemplate("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidRequestError, match="roles must alternate"):
        template.render(HI)
    template.close()


def test_who_waits_too_long_for_the_template_is_told_to_come_again():
    template = BoundedTemplate(BOMBS["nested loops"], cpu_s=1.0, wall_s=0.2)
    busy = threading.Event()

    def occupy() -> None:
        with template._lock:
            busy.set()
            done.wait(10)

    done = threading.Event()
    holder = threading.Thread(target=occupy)
    holder.start()
    busy.wait(10)
    with pytest.raises(QueueFullError, match="busy"):
        template.render(HI)
    done.set()
    holder.join()


def test_the_deadline_holds_where_no_processor_time_is_counted():
    template = BoundedTemplate(BOMBS["nested loops"], cpu_s=100.0, wall_s=0.3)
    with pytest.raises(InvalidRequestError):
        template.render(HI)


def test_a_child_that_something_else_ended_is_started_again():
    template = BoundedTemplate("{{ messages[0].content }}")
    assert template.render(HI) == "hi"
    child = template._child
    assert child is not None
    child.kill()
    child.wait()
    assert template.render(HI) == "hi"
    template.close()


def test_a_file_in_the_current_folder_is_not_taken_for_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "jinja2.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    template = BoundedTemplate("{{ messages[0].content }}")
    assert template.render(HI) == "hi"
    template.close()


def test_the_child_ends_with_its_template():
    template = BoundedTemplate("x")
    template.render(HI)
    child = template._child
    assert child is not None
    gone = weakref.ref(template)
    del template
    gc.collect()
    assert gone() is None
    assert child.poll() is not None


def test_source_is_bounded_and_checked_before_anything_runs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(ModelLoadError, match="characters"):
        open_template("x" * (MAX_TEMPLATE_CHARS + 1))
    for source in ("{% if %}", "{{ " + "(" * 100_000):
        with pytest.raises(ModelLoadError, match="does not compile"):
            open_template(source)


def test_only_templates_that_were_read_run_in_this_process():
    encoder = load_tokenizer("smollm2").chat_encoder
    assert isinstance(open_template(encoder.literals), ChatTemplate)  # type: ignore[union-attr]
    assert isinstance(open_template("{{ messages }}"), BoundedTemplate)
    assert len(bounded_template._READ_BY_US) == 1


def test_constants_are_not_computed_in_this_process(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    power = "9 ** (10 ** 10)"  # 4 GB
    source = "{{ POWER }}{% autoescape POWER %}{% endautoescape %}{% if POWER %}{{ x }}{% endif %}"
    assert open_template(source.replace("POWER", power)).variables == {"x"}
