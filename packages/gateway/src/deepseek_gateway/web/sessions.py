"""Sessions of the pages, and the tokens that tie forms to them."""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from deepseek_gateway.audit.actor import Actor
from deepseek_gateway.storage.atomic import atomic
from deepseek_gateway.storage.store import Store
from deepseek_gateway.web.records import Role, Session, SessionSource

SEEN_EVERY_S = 60.0
MAX_AGENT = 200


@dataclass(frozen=True, slots=True)
class Sessions:
    """Sessions in one store. Calls block on it.

    Args:
        ttl_s: seconds that a session lasts at most.
        idle_s: seconds that it may rest.
    """

    store: Store
    ttl_s: float
    idle_s: float
    wall: Callable[[], float] = field(default=time.time)

    @atomic
    def begin(
        self, account: str, role: Role, source: SessionSource, agent: str, request_id: str | None = None
    ) -> tuple[str, Session]:
        """A new session, and the cookie that is its only key."""
        cookie, now = secrets.token_urlsafe(32), self.wall()
        session = Session(handle_of(cookie), account, role, source, agent[:MAX_AGENT], now, now, now + self.ttl_s)
        self.store.web.add_session(session)
        with self.store.database.transaction() as transaction:
            by, after = Actor(f"session:{account}", request_id), {"role": role.value, "source": source.value}
            self.store.audit.record(transaction, by, "session.begin", account, after=after)
        return cookie, session

    def find(self, cookie: str) -> Session | None:
        """The session of a cookie, if it is not over."""
        session, now = self.store.web.session(handle_of(cookie)), self.wall()
        if session is None or now >= session.expires or now - session.seen >= self.idle_s:
            return None
        if now - session.seen >= min(SEEN_EVERY_S, self.idle_s / 2):
            self.store.web.saw_session(session.handle, now)
        return session

    def of_account(self, session: Session) -> list[Session]:
        """All sessions of the same person that are not over."""
        found, now = self.store.web.sessions(session.account, session.source, self.wall()), self.wall()
        return [other for other in found if now - other.seen < self.idle_s or other.handle == session.handle]

    def end(self, handle: str) -> None:
        """End a session."""
        self.store.web.end_session(handle)


def handle_of(cookie: str) -> str:
    """What the store knows a cookie by: who reads the store cannot sign in with it."""
    return hashlib.sha256(cookie.encode()).hexdigest()


def web_secret(pepper: bytes) -> bytes:
    """A secret for the pages alone, the same on all gateways of a store."""
    return hmac.new(pepper, b"deepseek-gateway web pages", hashlib.sha256).digest()


def form_token(secret: bytes, cookie: str) -> str:
    """The token that a form must carry: only a page that was rendered for this cookie knows it."""
    return hmac.new(secret, b"form:" + cookie.encode(), hashlib.sha256).hexdigest()


def is_form_token(secret: bytes, cookie: str, given: str) -> bool:
    """Whether a form's token belongs to the cookie."""
    return hmac.compare_digest(form_token(secret, cookie).encode(), given.encode())
