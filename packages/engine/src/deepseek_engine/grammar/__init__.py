"""Structured output: answers that a JSON schema, a regular expression, a list or a grammar describes.

A request's fields become a `GrammarSource` in the API process, which also has it tried out in a process that may be
killed. The core compiles the same source in a thread and masks, for each token, what would leave the grammar.
"""
