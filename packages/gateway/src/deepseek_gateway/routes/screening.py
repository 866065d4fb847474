"""What judges a request's texts before an engine gets them, and its answer after that."""

from dataclasses import dataclass

from deepseek_gateway.auth.records import KeyRecord
from deepseek_gateway.edge.context import RequestContext
from deepseek_gateway.gateway import Gateway
from deepseek_gateway.guard.classifier import AnswerKeeper
from deepseek_gateway.guard.guard import WordGuard
from deepseek_gateway.guard.reviews import Watched
from deepseek_gateway.relay.request import GenerationRequest


@dataclass(slots=True)
class Screening:
    """The word filter and the classifier on a request: once, and as late as may be."""

    gateway: Gateway
    guard: WordGuard | None
    request: GenerationRequest
    context: RequestContext
    key: KeyRecord
    is_done: bool = False

    async def done(self) -> None:
        """Have the texts judged.

        Raises:
            ApiError: see `WordGuard.screen` and `Classifier.screen`.
        """
        if self.is_done:
            return
        self.is_done, context, fields = True, self.context, self.request.fields
        if self.guard is not None:
            await self.guard.screen(fields, context.body_bytes)
        if self.gateway.classifier is not None:
            await self.gateway.classifier.screen(watched_of(context, self.key), fields, context.note)

    def keeper(self) -> tuple[AnswerKeeper, ...]:
        """The stage that keeps the answer for the classifier, if there is one, and texts are generated."""
        classifier = self.gateway.classifier
        if classifier is None or not self.request.dialect.generates:
            return ()
        return (classifier.stage(watched_of(self.context, self.key)),)


def watched_of(context: RequestContext, key: KeyRecord) -> Watched:
    """Whose texts they are, for the review queue."""
    return Watched(context.request_id, key.public_id, context.model)
