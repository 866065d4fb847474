"""Accounts, sessions and attempts in both stores."""

import pytest

from deepseek_gateway.storage.store import Store
from deepseek_gateway.web.accounts import (
    MAX_PER_ACCOUNT,
    WINDOW_S,
    AccountError,
    Accounts,
    TooManyAttemptsError,
    network_of,
)
from deepseek_gateway.web.records import Role, SessionSource
from deepseek_gateway.web.sessions import Sessions, form_token, is_form_token

PASSWORD = "a password that is long"

pytestmark = pytest.mark.usefixtures("cheap_passwords")


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def test_a_password_is_kept_as_argon2id_and_opens_its_own_account_only(store: Store) -> None:
    accounts = Accounts(store)
    accounts.create("ada", PASSWORD)
    account = store.web.account("ada")
    assert account is not None
    assert account.password_hash.startswith("$argon2id$")
    assert PASSWORD not in repr(account) + account.password_hash
    assert accounts.verify("ada", PASSWORD, "192.0.2.1") == account
    assert accounts.verify("ada", PASSWORD + "x", "192.0.2.1") is None
    assert accounts.verify("bob", PASSWORD, "192.0.2.1") is None


@pytest.mark.parametrize(
    ("name", "password", "field"), [("", PASSWORD, "name"), ("a\nb", PASSWORD, "name"), ("ada", "short", "password")]
)
def test_unfit_accounts_are_refused_by_field(store: Store, name: str, password: str, field: str) -> None:
    with pytest.raises(AccountError) as fault:
        Accounts(store).create(name, password)
    assert fault.value.field_name == field


def test_a_name_is_taken_once(store: Store) -> None:
    accounts = Accounts(store)
    accounts.create("ada", PASSWORD)
    with pytest.raises(AccountError, match="already"):
        accounts.create(" ada ", PASSWORD)


def test_the_first_account_is_made_once(store: Store) -> None:
    accounts = Accounts(store)
    first = accounts.create_first()
    assert first is not None
    name, password = first
    assert accounts.create_first() is None
    account = accounts.verify(name, password, "192.0.2.1")
    assert account is not None
    assert account.role is Role.ADMIN


def test_many_addresses_cannot_guess_one_account_for_long(store: Store) -> None:
    clock = Clock()
    accounts = Accounts(store, clock)
    accounts.create("ada", PASSWORD)
    for number in range(MAX_PER_ACCOUNT):
        assert accounts.verify("ada", "guess", f"192.0.2.{number}") is None
    with pytest.raises(TooManyAttemptsError) as refused:
        accounts.verify("ada", PASSWORD, "198.51.100.1")
    assert 0 < refused.value.wait_s <= WINDOW_S
    clock.now += WINDOW_S
    assert accounts.verify("ada", PASSWORD, "198.51.100.1") is not None


def test_old_attempts_are_forgotten(store: Store) -> None:
    clock = Clock()
    accounts = Accounts(store, clock)
    for number in range(30):
        accounts.verify(f"nobody-{number}", "guess", f"192.0.2.{number}")
        clock.now += WINDOW_S / 3
    rows = store.database.read("SELECT count(*) FROM web_login_failures")
    assert rows[0][0] <= 2 * 4


def test_an_ipv6_guesser_is_its_network() -> None:
    assert network_of("2001:db8:1:2:3::4") == network_of("2001:db8:1:2:ffff::1") == "2001:db8:1:2::/64"
    assert network_of("::ffff:192.0.2.1") == network_of("192.0.2.1") == "192.0.2.1"
    assert network_of("") == "unknown"


def test_a_session_ends_when_it_is_old_or_rests(store: Store) -> None:
    clock = Clock()
    sessions = Sessions(store, ttl_s=1000, idle_s=300, wall=clock)
    cookie, session = sessions.begin("ada", Role.VIEWER, SessionSource.PASSWORD, "browser " * 100)
    assert sessions.find(cookie) == session
    assert sessions.find(cookie + "x") is None
    for _ in range(4):
        clock.now += 240
        assert sessions.find(cookie) is not None
    clock.now += 40
    assert sessions.find(cookie) is None  # old
    cookie, _ = sessions.begin("ada", Role.VIEWER, SessionSource.PASSWORD, "")
    clock.now += 300
    assert sessions.find(cookie) is None  # rested
    sessions.begin("ada", Role.VIEWER, SessionSource.PASSWORD, "")
    clock.now += 2000
    sessions.begin("ada", Role.VIEWER, SessionSource.PASSWORD, "")
    assert store.database.read("SELECT count(*) FROM web_sessions")[0][0] == 1


def test_removing_an_account_ends_its_sessions(store: Store) -> None:
    accounts, sessions = Accounts(store), Sessions(store, 1000, 300)
    accounts.create("ada", PASSWORD)
    cookie, _ = sessions.begin("ada", Role.ADMIN, SessionSource.PASSWORD, "")
    accounts.remove("ada")
    assert sessions.find(cookie) is None
    with pytest.raises(AccountError):
        accounts.remove("ada")


def test_a_form_token_belongs_to_one_cookie_of_one_gateway() -> None:
    token = form_token(b"secret", "cookie")
    assert is_form_token(b"secret", "cookie", token)
    assert not is_form_token(b"secret", "other", token)
    assert not is_form_token(b"other", "cookie", token)
    assert not is_form_token(b"secret", "cookie", "å")
