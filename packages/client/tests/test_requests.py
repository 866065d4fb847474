"""Requests as a server reads them."""

import json

import pydantic
import pytest

from deepseek_client.types import ChatCompletionRequest, CompletionRequest, SamplingFields


@pytest.mark.parametrize(
    ("request_type", "body"),
    [
        (CompletionRequest, {"prompt": [1.5] * 1000}),
        (CompletionRequest, {"prompt": [["a"]] * 1000}),
        (CompletionRequest, {"prompt": "a", "stop": [1] * 1000}),
        (CompletionRequest, {"prompt": "a", "stop_token_ids": ["a"] * 1000}),
        (ChatCompletionRequest, {"messages": [{}] * 1000}),
        (ChatCompletionRequest, {"messages": [], "tools": [1] * 1000}),
        (ChatCompletionRequest, {"messages": [{"role": "user", "content": [1] * 1000}]}),
    ],
)
def test_checking_a_list_ends_at_its_first_wrong_item(request_type: type[SamplingFields], body: object):
    with pytest.raises(pydantic.ValidationError) as caught:
        request_type.model_validate_json(json.dumps(body), strict=True)
    assert caught.value.error_count() <= 4, "at most one for each member of a union"
