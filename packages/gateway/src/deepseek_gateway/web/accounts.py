"""Local accounts of the pages: argon2id passwords, and a bound on guessing. Calls block, on purpose even."""

import functools
import ipaddress
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from deepseek_gateway.audit.actor import GATEWAY, Acting
from deepseek_gateway.errors import GatewayError, StoreConflictError
from deepseek_gateway.storage.atomic import atomic
from deepseek_gateway.storage.store import Store
from deepseek_gateway.web.records import OIDC_PREFIX, Account, Role

MIN_PASSWORD, MAX_PASSWORD = 12, 256
MAX_NAME = 64
WINDOW_S = 15 * 60
MAX_PER_ACCOUNT = 20
MAX_PER_ADDRESS = 10
"""Attempts in a window. An address that guesses is stopped before an account is, so that few can lock out its owner."""

_HASHER = PasswordHasher()  # RFC 9106's second profile: 64 MiB, three passes

_VERIFYING = threading.BoundedSemaphore(2)
"""Verifications at once: each takes 64 MiB."""


class AccountError(GatewayError):
    """An account cannot be made or changed like this. `key` names the message, `field` the field at fault."""

    def __init__(self, message: str, field_name: str, key: str) -> None:
        super().__init__(message)
        self.field_name = field_name
        self.key = key


class TooManyAttemptsError(GatewayError):
    """Somebody guesses."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"too many attempts: try again in {wait_s:.0f} s")
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True)
class Accounts:
    """The local accounts of one store."""

    store: Store
    wall: Callable[[], float] = field(default=time.time)

    @atomic
    def create(self, name: str, password: str, role: Role = Role.ADMIN, *, by: Acting = GATEWAY) -> Account:
        """Make an account.

        Raises:
            AccountError: the name is taken or unfit, or the password is.
        """
        name = checked_name(name)
        now = self.wall()
        account = Account(name, _HASHER.hash(checked_password(password)), role, now, now)
        try:
            self.store.web.add_account(account)
        except StoreConflictError:
            raise AccountError(f"there is an account {name!r} already", "name", "account.taken") from None
        self._record(by, "account.create", name, {"role": role.value})
        return account

    def create_first(self) -> tuple[str, str] | None:
        """The name and password of a first account, or None when there is an account already."""
        if self.store.web.accounts():
            return None
        password = secrets.token_urlsafe(15)
        return self.create("admin", password).name, password

    @atomic
    def set_password(self, name: str, password: str, keep: str | None = None, *, by: Acting = GATEWAY) -> None:
        """Replace a password; the account is signed out everywhere but in the session `keep`, and unlocked.

        Raises:
            AccountError: there is no such account, or the password is unfit.
        """
        hashed = _HASHER.hash(checked_password(password))
        if not self.store.web.set_password(name, hashed, self.wall(), keep):
            raise AccountError(f"there is no account {name!r}", "name", "account.unknown")
        self.store.web.forget_attempts((f"account:{name}",))
        self._record(by, "account.password", name)

    @atomic
    def remove(self, name: str, *, by: Acting = GATEWAY) -> None:
        """Forget an account and sign it out.

        Raises:
            AccountError: there is no such account.
        """
        if not self.store.web.remove_account(name):
            raise AccountError(f"there is no account {name!r}", "name", "account.unknown")
        self._record(by, "account.remove", name)

    @atomic
    def sign_out(self, name: str, *, by: Acting = GATEWAY) -> int:
        """End all sessions of a name, also of one that an issuer vouches for; gives how many there were."""
        ended = self.store.web.end_sessions(name)
        self._record(by, "account.sign_out", name, {"sessions": ended})
        return ended

    def verify(self, name: str, password: str, address: str) -> Account | None:
        """The account, if the password is its own.

        Raises:
            TooManyAttemptsError: the account or the address has had its attempts.
        """
        now, name = self.wall(), name[:MAX_NAME]
        by_account, by_address = f"account:{name}", f"address:{network_of(address)}"
        counts = self.store.web.count_attempt((by_account, by_address), now, WINDOW_S)
        for subject, most in ((by_account, MAX_PER_ACCOUNT), (by_address, MAX_PER_ADDRESS)):
            count, since = counts[subject]
            if count > most:
                raise TooManyAttemptsError(max(1.0, since + WINDOW_S - now))
        account = self.store.web.account(name)
        with _VERIFYING:
            is_right = _matches(_nobody() if account is None else account.password_hash, password[:MAX_PASSWORD])
        if account is None or not is_right:
            return None
        self.store.web.forget_attempts((by_account, by_address))
        return account

    def _record(self, by: Acting, action: str, name: str, after: object = None) -> None:
        with self.store.database.transaction() as transaction:
            self.store.audit.record(transaction, by, action, name, after=after)


def network_of(address: str) -> str:
    """What counts as one guesser: an IPv4 address, or a /64 of IPv6, of which everybody has many addresses."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return "unknown"
    if isinstance(parsed, ipaddress.IPv6Address):
        mapped = parsed.ipv4_mapped
        return str(mapped or ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


def checked_name(name: str) -> str:
    """A name for an account.

    Raises:
        AccountError: it is empty, too long, holds what cannot be printed, or looks like one of an issuer's.
    """
    name = name.strip()
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable() or name.startswith(OIDC_PREFIX):
        message = f"a name has 1 to {MAX_NAME} printable characters, and does not begin with {OIDC_PREFIX!r}"
        raise AccountError(message, "name", "account.bad_name")
    return name


def checked_password(password: str) -> str:
    """A password that may be set.

    Raises:
        AccountError: it is too short or too long.
    """
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        message = f"the password has {len(password)} characters: {MIN_PASSWORD} to {MAX_PASSWORD} are needed"
        raise AccountError(message, "password", "account.bad_password")
    return password


@functools.cache
def _nobody() -> str:
    """Verified against where there is no account, so that both cases take as long.

    It is hashed when first needed: a start would wait a quarter of a second for it.
    """
    return _HASHER.hash(secrets.token_hex(16))


def _matches(password_hash: str, password: str) -> bool:
    try:
        return _HASHER.verify(password_hash, password)
    except (VerificationError, InvalidHashError):
        return False
