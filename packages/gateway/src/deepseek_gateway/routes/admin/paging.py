"""Lists of the admin API come in pages."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from deepseek_gateway.storage.paging import Cursor

MAX_LIMIT = 1000


class PageQuery(BaseModel):
    """Which part of a list: `limit` entries behind `cursor`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cursor: Annotated[str, Field(max_length=100, description="next_cursor of the page before")] | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_LIMIT)] = 50

    @property
    def after(self) -> Cursor | None:
        """Where the page begins."""
        return None if self.cursor is None else Cursor.parse(self.cursor)


def page_of(data: list[dict[str, object]], after: Cursor | None) -> dict[str, Any]:
    """A page as JSON."""
    return {"data": data, "next_cursor": None if after is None else str(after)}
