"""`/v1/files`: documents and images that messages refer to by their id."""

from typing import Literal

from deepseek_client.types.base import AnswerModel, WireModel


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
