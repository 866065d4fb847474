"""What a server offers beside answers: its models, the account, files, counts of tokens, pages of the web."""

from decimal import Decimal
from typing import Literal

from pydantic import AliasChoices, Field

from deepseek_client.types.base import AnswerModel, WireModel


class Model(WireModel):
    """A model that the server offers.

    `max_model_len` is its context in tokens where the server says it; `parent` the base model of a LoRA adapter.
    """

    id: str
    object: Literal["model"] | str = "model"
    created: int | None = None
    owned_by: str | None = None
    max_model_len: int | None = None
    parent: str | None = None


class ModelList(AnswerModel):
    """All models that the caller may use."""

    object: Literal["list"] | str = "list"
    data: list[Model]


class BalanceInfo(WireModel):
    """Money in one currency (CNY, USD): exact decimals, gifts and payments apart."""

    currency: str
    total_balance: Decimal
    granted_balance: Decimal = Decimal(0)
    topped_up_balance: Decimal = Decimal(0)


class Balance(AnswerModel):
    """Whether the account can pay for requests, and what it has; no infos where it is not prepaid."""

    is_available: bool
    balance_infos: list[BalanceInfo]


class FileObject(AnswerModel):
    """One uploaded file. Times are seconds since the epoch, `bytes` is its size."""

    id: str
    object: Literal["file"] | str = "file"
    bytes: int = 0
    created_at: int = 0
    expires_at: int | None = None
    filename: str = ""
    purpose: str | None = None
    status: str | None = None


class FileList(AnswerModel):
    """One page of the files; `has_more` says whether `after=last_id` gives another."""

    object: Literal["list"] | str = "list"
    data: list[FileObject]
    has_more: bool = False
    first_id: str | None = None
    last_id: str | None = None


class FileDeleted(AnswerModel):
    """The answer to a deletion."""

    id: str
    object: Literal["file"] | str = "file"
    deleted: bool = True


class ExpiresAfter(WireModel):
    """When a file is deleted by itself: seconds (3600 to 2,592,000 at DeepSeek) after its creation."""

    anchor: Literal["created_at"] | str = "created_at"
    seconds: int


class Tokenized(AnswerModel):
    """A text or a conversation as tokens."""

    count: int
    max_model_len: int | None = None
    tokens: list[int] | None = None


class SearchResult(WireModel):
    """One page that was found; `content` is its text where that was asked for."""

    url: str = ""
    title: str | None = None
    snippet: str | None = None
    summary: str | None = None
    content: str | None = None
    site_name: str | None = None
    site_icon: str | None = None
    date: str | None = None
    authority: float | str | None = None
    rerank_score: float | None = None


class SearchResults(AnswerModel):
    """What a search found, the best first."""

    results: list[SearchResult]


class WebPage(AnswerModel):
    """One page, as markdown."""

    url: str | None = None
    title: str | None = None
    markdown: str = Field(default="", validation_alias=AliasChoices("markdown", "content"))

    def __str__(self) -> str:
        return self.markdown
