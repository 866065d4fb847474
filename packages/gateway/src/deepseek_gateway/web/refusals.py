"""What services refuse, in the words of the catalogue: their own are English."""

import re
from typing import NamedTuple, Protocol

from pydantic import ValidationError

from deepseek_gateway.auth.fields import refusal
from deepseek_gateway.errors import ApiError
from deepseek_gateway.web.messages import Language, Messages


class PageError(ApiError):
    """A refusal of the pages themselves: its message is in the page's language already."""


class Speaker(Protocol):
    """A page, as far as it is needed here."""

    @property
    def language(self) -> Language:
        """The language to speak."""
        ...

    @property
    def messages(self) -> Messages:
        """The catalogue."""
        ...


class Fault(NamedTuple):
    """What is wrong with a form: the field without the `_id` of its name, empty where it is about none."""

    status: int
    field: str
    message: str


def told(speaker: Speaker, error: ApiError) -> tuple[str, str]:
    """A refusal for a page of its own: what to say, and the service's own words where they say more."""
    if isinstance(error, PageError) or speaker.language is Language.ENGLISH:
        return error.message, ""
    for key in (f"refusal.{error.code}", f"refusal.{error.status}"):
        if speaker.messages.has(key):
            return speaker.messages.text(speaker.language, key), error.message
    return error.message, ""


def fault_of(speaker: Speaker, error: ApiError | ValidationError, prefix: str = "") -> Fault:
    """A refusal for the form that it is about.

    The catalogue's text is looked up by the refusal's code, then by `prefix` and the field's name, then by the name.
    """
    known = error if isinstance(error, ApiError) else refusal(error)
    named = known.param or _named_in(known.message)
    field = named.partition(".")[0].removesuffix("_id")  # of a union, the member that was tried follows
    status = known.status if known.status >= 400 else 422
    for name in (known.code, f"{prefix}{field}", field):
        if name and speaker.messages.has(f"fault.{name}"):
            return Fault(status, field, speaker.messages.text(speaker.language, f"fault.{name}"))
    return Fault(status, field, told(speaker, known)[0])


def _named_in(message: str) -> str:
    """The field that a message such as `time_zone='x' is no ...` begins with: a draft's own checks name none else."""
    match = re.match(r"([a-z_]+)=", message)
    return match[1] if match is not None else ""
