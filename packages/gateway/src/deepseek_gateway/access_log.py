"""One line a request. No header, no body and no key gets here, so none can be logged."""

import logging

from deepseek_gateway.edge.context import RequestContext

logger = logging.getLogger("deepseek_gateway.access")


def log_request(context: RequestContext) -> None:
    """Write the line of a request that is over."""
    tokens = context.tokens
    logger.info(
        "request_id=%s key=%s route=%s model=%s status=%d outcome=%s prompt_tokens=%s completion_tokens=%s "
        "cached_tokens=%s ttft_ms=%s total_ms=%.1f",
        context.request_id,
        context.key_id or "-",
        context.route,
        _plain(context.model),
        context.status,
        context.outcome,
        "-" if tokens is None else tokens.prompt,
        "-" if tokens is None else tokens.completion,
        "-" if tokens is None else tokens.cached,
        "-" if context.ttft_ms is None else f"{context.ttft_ms:.1f}",
        context.elapsed_ms(),
    )


def _plain(text: str | None) -> str:
    """A model name as callers wrote it must not break the line, or forge one."""
    return "-" if not text else "".join(c if c.isprintable() and c not in ' "=' else "?" for c in text[:80])
