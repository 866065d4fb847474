"""The engine's exception tree.

EngineError
├── InvalidRequestError (also ValueError)   the request cannot be served as it is
│   ├── ContextLengthError                  prompt and max_tokens do not fit the context
│   └── GrammarError                        a schema, pattern or grammar that cannot be followed
├── AdapterError (also ValueError)          a LoRA adapter is broken, of an unsupported kind, or too large
│   └── UnknownAdapterError                 no adapter of this name is loaded
├── ModelLoadError (also ValueError)        the checkpoint is missing, broken or not supported
├── ConversionError (also ValueError)       a converted checkpoint cannot be written as asked
├── QueueFullError                          the waiting queue is at its bound; try again later
├── EngineStartError                        the core process did not come up
└── EngineDeadError                         the core process is gone; no request can be served
"""


class EngineError(Exception):
    """Base of everything this package raises on purpose."""


class InvalidRequestError(EngineError, ValueError):
    """A request that cannot be served as it is; `param` names the field at fault."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ContextLengthError(InvalidRequestError):
    """Prompt and max_tokens do not fit the model's context."""


class AdapterError(EngineError, ValueError):
    """A LoRA adapter that is broken, of a kind that is not served, or too large."""


class UnknownAdapterError(AdapterError):
    """No adapter of this name is loaded."""


class GrammarError(InvalidRequestError):
    """A schema, pattern or grammar that is wrong, not supported, too large, or too slow to follow."""


class ModelLoadError(EngineError, ValueError):
    """A checkpoint that is missing, broken or of a kind this engine does not run."""


class ConversionError(EngineError, ValueError):
    """A converted checkpoint that cannot be written as asked."""


class QueueFullError(EngineError):
    """The waiting queue is at its bound."""


class EngineStartError(EngineError):
    """The core process did not come up; the message holds its reason."""


class EngineDeadError(EngineError):
    """The core process is gone."""
