"""Ranges and shapes of request fields beyond what the wire models say: those state shape, servers state limits."""

from typing import Any, Final

from deepseek_engine.sampling_params import (
    MAX_COUNT,
    MAX_DEADLINE_S,
    MAX_LOGIT_BIAS,
    MAX_LOGPROBS,
    MAX_N,
    MAX_PRIORITY,
    MAX_STOP_STRING_CHARS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
)
from deepseek_engine.server.limits import MAX_EMBEDDING_INPUTS, MAX_MESSAGES, MAX_PROMPTS

Schema = dict[str, Any]

# Constraints by field and JSON type: they hold wherever a request has a field of this name.
LIMITS: Final[dict[str, dict[str, Schema]]] = {
    "deadline_s": {"number": {"exclusiveMinimum": 0, "maximum": MAX_DEADLINE_S}},
    "frequency_penalty": {"number": {"minimum": -2, "maximum": 2}},
    "input": {"array": {"minItems": 1}, "string": {"minLength": 1}},
    "logprobs": {"integer": {"minimum": 0, "maximum": MAX_LOGPROBS}},
    "max_completion_tokens": {"integer": {"minimum": 1, "maximum": MAX_COUNT}},
    "max_tokens": {"integer": {"minimum": 0, "maximum": MAX_COUNT}},
    "messages": {"array": {"minItems": 1, "maxItems": MAX_MESSAGES}},
    "min_p": {"number": {"minimum": 0, "maximum": 1}},
    "min_tokens": {"integer": {"minimum": 0, "maximum": MAX_COUNT}},
    "n": {"integer": {"minimum": 1, "maximum": MAX_N}},
    "presence_penalty": {"number": {"minimum": -2, "maximum": 2}},
    "priority": {"integer": {"maximum": MAX_PRIORITY}},
    "prompt_logprobs": {"integer": {"minimum": 0, "maximum": MAX_LOGPROBS}},
    "repetition_penalty": {"number": {"exclusiveMinimum": 0, "maximum": 10}},
    "seed": {"integer": {"minimum": -(2**63), "maximum": 2**64 - 1}},
    "stop": {
        "array": {"maxItems": MAX_STOP_STRINGS, "items": {"type": "string", "maxLength": MAX_STOP_STRING_CHARS}},
        "string": {"minLength": 1, "maxLength": MAX_STOP_STRING_CHARS},
    },
    "stop_token_ids": {"array": {"maxItems": MAX_STOP_TOKEN_IDS, "items": {"type": "integer", "minimum": 0}}},
    "temperature": {"number": {"minimum": 0, "maximum": 2}},
    "top_k": {"integer": {"minimum": -1, "maximum": MAX_COUNT}},
    "top_logprobs": {"integer": {"minimum": 0, "maximum": MAX_LOGPROBS}},
    "top_p": {"number": {"exclusiveMinimum": 0, "maximum": 1}},
    "logit_bias": {
        "object": {
            "maxProperties": MAX_LOGIT_BIAS,
            "propertyNames": {"pattern": "^[0-9]+$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        }
    },
}

# Entries of lists are bounded in number for each endpoint.
LIST_LIMITS: Final[dict[tuple[str, str], int]] = {
    ("CompletionRequest", "prompt"): MAX_PROMPTS,
    ("EmbeddingRequest", "input"): MAX_EMBEDDING_INPUTS,
}

_ANY_OBJECT: Final[Schema] = {"type": "object", "additionalProperties": True}
_TEXT: Final[Schema] = {"type": "string", "minLength": 1}
_WORDS: Final[Schema] = {"type": "array", "items": {"type": "string"}, "minItems": 1}

# What the wire models leave open.
SHAPES: Final[dict[str, Schema]] = {
    "response_format": {
        "type": "object",
        "properties": {
            "type": {"type": "string", "enum": ["text", "json_object", "json_schema"]},
            "json_schema": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "schema": _ANY_OBJECT},
                "required": ["schema"],
            },
        },
        "required": ["type"],
    },
    "structured_outputs": {
        "type": "object",
        "properties": {
            "json": {"anyOf": [_ANY_OBJECT, _TEXT]},
            "regex": _TEXT,
            "choice": _WORDS,
            "grammar": _TEXT,
            "json_object": {"type": "boolean"},
        },
        "minProperties": 1,
    },
    "guided_json": {"anyOf": [_ANY_OBJECT, _TEXT]},
    "guided_regex": _TEXT,
    "guided_choice": _WORDS,
    "guided_grammar": _TEXT,
}
