"""`POST /v1/tools/search` and `/v1/tools/fetch`: the web, for programs and for models."""

from pydantic import AliasChoices, Field

from deepseek_client.types.base import AnswerModel, WireModel


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
