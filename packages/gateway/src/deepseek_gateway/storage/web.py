"""The tables of the web pages: accounts, sessions, and wrong guesses at passwords."""

from dataclasses import dataclass

from deepseek_gateway.storage.database import Database, Row
from deepseek_gateway.web.records import Account, Role, Session, SessionSource

_ACCOUNT = "SELECT name, password_hash, role, created, changed FROM web_accounts"
_SESSION = "SELECT handle, account, role, source, agent, created, seen, expires FROM web_sessions"


@dataclass(frozen=True, slots=True)
class WebTable:
    """See the module."""

    database: Database

    def add_account(self, account: Account) -> None:
        """Keep a new account.

        Raises:
            StoreConflictError: there is one of this name.
        """
        self.database.write(
            "INSERT INTO web_accounts (name, password_hash, role, created, changed) "
            "VALUES (:name, :password_hash, :role, :created, :changed)",
            {
                "name": account.name,
                "password_hash": account.password_hash,
                "role": account.role.value,
                "created": account.created,
                "changed": account.changed,
            },
        )

    def account(self, name: str) -> Account | None:
        """The account of a name."""
        rows = self.database.read(f"{_ACCOUNT} WHERE name = :name", {"name": name})
        return _account(rows[0]) if rows else None

    def accounts(self) -> list[Account]:
        """All accounts, by name."""
        return [_account(row) for row in self.database.read(f"{_ACCOUNT} ORDER BY name")]

    def set_password(self, name: str, password_hash: str, at: float, keep: str | None = None) -> bool:
        """Replace a password, and end the account's sessions but `keep`; False when there is no such account."""
        with self.database.transaction() as transaction:
            changed = transaction.write(
                "UPDATE web_accounts SET password_hash = :hash, changed = :at WHERE name = :name",
                {"hash": password_hash, "at": at, "name": name},
            )
            transaction.write(
                "DELETE FROM web_sessions WHERE account = :name AND source = 'password' AND handle <> :keep",
                {"name": name, "keep": keep or ""},
            )
        return bool(changed)

    def remove_account(self, name: str) -> bool:
        """Forget an account and end its sessions; False when there is none."""
        with self.database.transaction() as transaction:
            transaction.write("DELETE FROM web_sessions WHERE account = :name AND source = 'password'", {"name": name})
            return bool(transaction.write("DELETE FROM web_accounts WHERE name = :name", {"name": name}))

    def add_session(self, session: Session) -> None:
        """Keep a new session, and forget those that are over."""
        with self.database.transaction() as transaction:
            transaction.write("DELETE FROM web_sessions WHERE expires <= :now", {"now": session.created})
            transaction.write(
                "INSERT INTO web_sessions (handle, account, role, source, agent, created, seen, expires) "
                "VALUES (:handle, :account, :role, :source, :agent, :created, :seen, :expires)",
                {
                    "handle": session.handle,
                    "account": session.account,
                    "role": session.role.value,
                    "source": session.source.value,
                    "agent": session.agent,
                    "created": session.created,
                    "seen": session.seen,
                    "expires": session.expires,
                },
            )

    def session(self, handle: str) -> Session | None:
        """The session of a handle, over or not."""
        rows = self.database.read(f"{_SESSION} WHERE handle = :handle", {"handle": handle})
        return _session(rows[0]) if rows else None

    def sessions(self, account: str, source: SessionSource, now: float) -> list[Session]:
        """An account's sessions that are not over, the newest first."""
        rows = self.database.read(
            f"{_SESSION} WHERE account = :account AND source = :source AND expires > :now ORDER BY created DESC",
            {"account": account, "source": source.value, "now": now},
        )
        return [_session(row) for row in rows]

    def saw_session(self, handle: str, at: float) -> None:
        """Note when a session was used."""
        self.database.write("UPDATE web_sessions SET seen = :at WHERE handle = :handle", {"at": at, "handle": handle})

    def end_session(self, handle: str) -> None:
        """End a session."""
        self.database.write("DELETE FROM web_sessions WHERE handle = :handle", {"handle": handle})

    def end_sessions(self, account: str) -> int:
        """End all sessions of a name; gives how many there were."""
        return self.database.write("DELETE FROM web_sessions WHERE account = :account", {"account": account})

    def all_sessions(self, now: float) -> list[Session]:
        """Everybody's sessions that are not over, by name, the newest first."""
        rows = self.database.read(f"{_SESSION} WHERE expires > :now ORDER BY account, created DESC", {"now": now})
        return [_session(row) for row in rows]

    def count_attempt(self, subjects: tuple[str, ...], now: float, window_s: float) -> dict[str, tuple[int, float]]:
        """Count an attempt against each subject; gives each one's count in its window, and when that began.

        Counted before the password is looked at, so that a hundred guesses at once are a hundred.
        """
        counts: dict[str, tuple[int, float]] = {}
        with self.database.transaction() as transaction:
            transaction.write("DELETE FROM web_login_failures WHERE since <= :end", {"end": now - window_s})
            for subject in sorted(subjects):  # one order for all processes, so that none waits for another in a circle
                rows = transaction.read(
                    "INSERT INTO web_login_failures (subject, failures, since) VALUES (:subject, 1, :now) "
                    "ON CONFLICT (subject) DO UPDATE SET failures = web_login_failures.failures + 1 "
                    "RETURNING failures, since",
                    {"subject": subject, "now": now},
                )
                counts[subject] = (int(rows[0][0]), float(rows[0][1]))
        return counts

    def forget_attempts(self, subjects: tuple[str, ...]) -> None:
        """Start subjects at zero."""
        with self.database.transaction() as transaction:
            for subject in sorted(subjects):
                transaction.write("DELETE FROM web_login_failures WHERE subject = :subject", {"subject": subject})


def _account(row: Row) -> Account:
    name, password_hash, role, created, changed = row
    return Account(name, password_hash, Role(role), created, changed)


def _session(row: Row) -> Session:
    handle, account, role, source, agent, created, seen, expires = row
    return Session(handle, account, Role(role), SessionSource(source), agent, created, seen, expires)
