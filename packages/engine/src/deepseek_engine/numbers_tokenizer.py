"""The tokenizer of a model that has no language: the text `12 7` is the token ids 12 and 7, and back."""

import tokenizers
from tokenizers import models, pre_tokenizers


def numbers_tokenizer(vocab_size: int) -> tokenizers.Tokenizer:
    """Ids in decimal, with spaces between; a word that is no id is read as 0."""
    vocabulary = {str(index): index for index in range(vocab_size)}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="0"))  # noqa: S106 - a word of text
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return backend
