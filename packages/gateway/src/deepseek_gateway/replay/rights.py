"""Whether an answer that was made earlier may be given out now: as a fresh request of the key's would be served."""

from collections.abc import Callable
from dataclasses import dataclass

from deepseek_gateway.auth.records import KeyRecord
from deepseek_gateway.errors import ApiError
from deepseek_gateway.gateway import Gateway
from deepseek_gateway.guard.reviews import Watched
from deepseek_gateway.replay.recording import Terms


@dataclass(frozen=True, slots=True)
class Rights:
    """What a key's caller may have now. That the key itself is in force was seen when it was authenticated.

    Attributes:
        may_use: raises ApiError where a fresh request for a model would be refused: 403 or 404.
    """

    gateway: Gateway
    key: KeyRecord
    request_id: str
    may_use: Callable[[str | None], None]

    async def terms(self, model: str | None) -> Terms:
        """What an answer would be made under now.

        Raises:
            ApiError: 503, the key's word lists cannot be used.
        """
        watched = Watched(self.request_id, self.key.public_id, model)
        return Terms(model, await self.gateway.words.version_of(watched, self.key.org_id))

    async def check(self, terms: Terms, way_out: str) -> None:
        """Go on only when an answer that was made under these terms may be given out.

        Raises:
            ApiError: 403 or 404, the key may not use its model any more, or nobody serves it; 409, other word lists are
                in force than those that it has passed.
        """
        self.may_use(terms.model)
        now = await self.terms(terms.model)
        if now.list_version != terms.list_version:
            message = f"the word lists have changed since this answer was made, so it is not given out again: {way_out}"
            raise ApiError(409, message, code="word_lists_changed")
