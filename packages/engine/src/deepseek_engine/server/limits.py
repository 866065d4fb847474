"""Bounds on what one request may ask for; those of sampling are in sampling_params.py."""

from typing import Final

MAX_PROMPTS: Final = 128
MAX_EMBEDDING_INPUTS: Final = 512
MAX_CHOICES: Final = 256
MAX_MESSAGES: Final = 4096
DEFAULT_GENERATE_MAX_TOKENS: Final = 512
