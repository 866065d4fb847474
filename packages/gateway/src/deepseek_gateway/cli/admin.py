"""`deepseek-gateway admin create|passwd|list|remove|sessions|sign-out`: who may sign in to the pages, and who is."""

import argparse
import getpass
import json
import secrets
import sys
import time

from deepseek_gateway.auth.principal import Principal
from deepseek_gateway.cli.common import Commands, add_state_flag, date_text, opened, settings_of, table
from deepseek_gateway.web.accounts import MIN_PASSWORD, Accounts
from deepseek_gateway.web.records import Role


def add_parser(commands: Commands) -> None:
    """Add the commands."""
    parser = commands.add_parser("admin", help="create, list and remove accounts of the administration pages")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    create = _add(actions, "create", "make an account; without --password-stdin its password is made up and shown")
    create.add_argument("name", help="what to sign in with")
    create.add_argument("--role", choices=[role.value for role in Role], default=Role.ADMIN.value)
    _add_password_flag(create)
    create.set_defaults(run=run_create)
    passwd = _add(actions, "passwd", "set a new password; the account is signed out everywhere, and unlocked")
    passwd.add_argument("name", help="the account's name")
    _add_password_flag(passwd)
    passwd.set_defaults(run=run_passwd)
    listing = _add(actions, "list", "show all accounts")
    listing.set_defaults(run=run_list)
    remove = _add(actions, "remove", "end an account")
    remove.add_argument("name", help="the account's name")
    remove.set_defaults(run=run_remove)
    sessions = _add(actions, "sessions", "show who is signed in, OpenID Connect's people too")
    sessions.set_defaults(run=run_sessions)
    sign_out = _add(actions, "sign-out", "end all sessions of a name")
    sign_out.add_argument("name", help="as `admin sessions` and the audit log write it, such as 'oidc:ada#8d1c'")
    sign_out.set_defaults(run=run_sign_out)


def run_create(parsed: argparse.Namespace) -> int:
    """Make an account."""
    password, is_made_up = _password(parsed)
    with opened(settings_of(parsed)) as (store, _):
        account = Accounts(store).create(parsed.name, password, Role(parsed.role), by=Principal.operator())
    _show(parsed, account.name, password if is_made_up else None)
    return 0


def run_passwd(parsed: argparse.Namespace) -> int:
    """Set a password."""
    password, is_made_up = _password(parsed)
    with opened(settings_of(parsed)) as (store, _):
        Accounts(store).set_password(parsed.name, password, by=Principal.operator())
    _show(parsed, parsed.name, password if is_made_up else None)
    return 0


def run_list(parsed: argparse.Namespace) -> int:
    """Show all accounts."""
    with opened(settings_of(parsed)) as (store, _):
        accounts = store.web.accounts()
    if parsed.json:
        rows = [{"name": one.name, "role": one.role.value, "created": one.created} for one in accounts]
        print(json.dumps(rows))
        return 0
    rows = [[one.name, one.role.value, date_text(one.created), date_text(one.changed)] for one in accounts]
    print(table(("name", "role", "created", "password set"), rows))
    return 0


def run_remove(parsed: argparse.Namespace) -> int:
    """End an account."""
    with opened(settings_of(parsed)) as (store, _):
        Accounts(store).remove(parsed.name, by=Principal.operator())
    print(json.dumps({"removed": parsed.name}) if parsed.json else f"{parsed.name} is removed, and signed out")
    return 0


def run_sessions(parsed: argparse.Namespace) -> int:
    """Show who is signed in."""
    settings = settings_of(parsed)
    now = time.time()
    with opened(settings) as (store, _):
        found = [one for one in store.web.all_sessions(now) if now - one.seen < settings.web_idle_s]
    if parsed.json:
        fields = ("account", "role", "source", "created", "seen", "expires", "agent")
        print(json.dumps([{name: getattr(one, name) for name in fields} for one in found]))
        return 0
    rows = [[one.account, one.role.value, date_text(one.created), date_text(one.seen), one.agent[:40]] for one in found]
    print(table(("name", "role", "signed in", "last seen", "browser"), rows))
    return 0


def run_sign_out(parsed: argparse.Namespace) -> int:
    """End all sessions of a name."""
    with opened(settings_of(parsed)) as (store, _):
        ended = Accounts(store).sign_out(parsed.name, by=Principal.operator())
    shown = f"{parsed.name} is signed out ({ended} sessions)" if ended else f"{parsed.name} is not signed in"
    print(json.dumps({"name": parsed.name, "ended": ended}) if parsed.json else shown)
    return 0


def _add(actions: Commands, name: str, text: str) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=text)
    add_state_flag(parser)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    return parser


def _add_password_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--password-stdin", action="store_true", help=f"read the password (at least {MIN_PASSWORD} characters)"
    )


def _password(parsed: argparse.Namespace) -> tuple[str, bool]:
    """The password, and whether it was made up here. Never a flag: other users of the machine see those."""
    if not parsed.password_stdin:
        return secrets.token_urlsafe(15), True
    if sys.stdin.isatty():
        return getpass.getpass("password: "), False
    return sys.stdin.readline().rstrip("\r\n"), False


def _show(parsed: argparse.Namespace, name: str, password: str | None) -> None:
    if parsed.json:
        print(json.dumps({"name": name, **({} if password is None else {"password": password})}))
        return
    print(f"account:  {name}")
    if password is not None:
        print(f"password: {password}\nThis is the only time that the password is shown.")
