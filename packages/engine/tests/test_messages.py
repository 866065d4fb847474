"""What the core process and the server tell each other."""

import dataclasses

from deepseek_engine.messages import Ready
from deepseek_engine.runner_protocol import RunnerInfo


def test_core_can_tell_all_that_its_runner_says_of_itself() -> None:
    """Else no engine starts: the core sends the runner's facts as they are."""
    assert {field.name for field in dataclasses.fields(RunnerInfo)} <= set(Ready.__struct_fields__)
