"""Bounds on what a caller may describe; what they do not catch, the trial in a process of its own does."""

from typing import Final

MAX_SOURCE_BYTES: Final = 64 * 2**10
"""Of a schema, a pattern, a grammar or all choices together, as UTF-8."""
MAX_GRAMMAR_CHARS: Final = 2**20
"""Of the grammar that a schema or a pattern becomes."""
MAX_NESTING: Final = 64
"""Arrays and objects within each other in a schema; brackets in a pattern or a grammar."""
MAX_CHOICES: Final = 1024
MAX_ENUM_VALUES: Final = 1024
MAX_PROPERTIES: Final = 1024
"""In the whole schema."""
MAX_REPEATS: Final = 4096
"""The largest bound of a repetition: `{1,4096}` in a pattern, `maxItems` or `maxLength` in a schema."""
