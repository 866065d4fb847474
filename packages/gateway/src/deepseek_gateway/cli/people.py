"""What `org`, `team` and `user` share."""

import argparse
import json
from collections.abc import Callable
from typing import Final

from deepseek_gateway.cli.common import (
    Administration,
    Commands,
    add_action,
    administering,
    all_pages,
    checked,
    date_text,
    parse_count,
    table,
)
from deepseek_gateway.people.records import Owner, OwnerKind
from deepseek_gateway.people.service import OwnerChanges

PAGE: Final = 1000
Act = Callable[[Administration, argparse.Namespace], Owner]


def owner_id(admin: Administration, kind: OwnerKind, reference: str, org_id: str | None = None) -> str:
    """The id of an owner that is given by id or name."""
    return admin.people.find(admin.by, kind, reference, org_id).id


def add_org_flag(parser: argparse.ArgumentParser) -> None:
    """`--org`: in which organisation a name is looked up."""
    parser.add_argument("--org", metavar="ORG", help="its organisation, by id or name")


def add_owner_actions(actions: Commands, kind: OwnerKind, create: Act) -> argparse.ArgumentParser:
    """All actions on one kind of owner; gives the parser of `create`."""

    def parser_of(name: str, act: Act, text: str) -> argparse.ArgumentParser:
        def run(parsed: argparse.Namespace) -> int:
            with administering(parsed) as admin:
                owner = act(admin, parsed)
            print_owner(owner, as_json=parsed.json, done=name)
            return 0

        parser = add_action(actions, name, run, text)
        if kind is not OwnerKind.ORG:
            add_org_flag(parser)
        return parser

    def on_one(name: str, act: Callable[[Administration, str, argparse.Namespace], Owner], text: str) -> None:
        def with_id(admin: Administration, parsed: argparse.Namespace) -> Owner:
            org = getattr(parsed, "org", None)
            org_id = None if org is None else owner_id(admin, OwnerKind.ORG, org)
            return act(admin, owner_id(admin, kind, parsed.which, org_id), parsed)

        parser = parser_of(name, with_id, text)
        parser.add_argument("which", metavar=kind.value.upper(), help="its id or name")
        if name == "rename":
            parser.add_argument("name", help="its new name")

    def rename(admin: Administration, found: str, parsed: argparse.Namespace) -> Owner:
        return admin.people.rename(admin.by, kind, found, checked(OwnerChanges, {"name": parsed.name}))

    creating = parser_of("create", create, f"make a new {kind.noun}")
    creating.add_argument("name", help="its name")
    _add_list(actions, kind)
    on_one("show", lambda admin, found, _: admin.people.get(admin.by, kind, found), f"show one {kind.noun}")
    on_one("rename", rename, f"give the {kind.noun} another name")
    on_one(
        "disable",
        lambda admin, found, _: admin.people.set_disabled(admin.by, kind, found, disabled=True),
        "stop all of its keys within 5 seconds",
    )
    on_one(
        "enable",
        lambda admin, found, _: admin.people.set_disabled(admin.by, kind, found, disabled=False),
        "let its keys work again",
    )
    on_one(
        "delete", lambda admin, found, _: admin.people.delete(admin.by, kind, found), "delete it when it has nothing"
    )
    return creating


def _add_list(actions: Commands, kind: OwnerKind) -> None:
    def run(parsed: argparse.Namespace) -> int:
        with administering(parsed) as admin:
            org = getattr(parsed, "org", None)
            org_id = None if org is None else owner_id(admin, OwnerKind.ORG, org)
            found = all_pages(
                lambda after: admin.people.page(admin.by, kind, org_id=org_id, after=after, limit=PAGE), parsed.limit
            )
        if parsed.json:
            print(json.dumps([owner.to_json() for owner in found]))
        else:
            print(table(_titles(kind), [_row(owner) for owner in found]))
        return 0

    parser = add_action(actions, "list", run, f"show {kind.noun}s, the oldest first")
    parser.add_argument("--limit", type=parse_count, metavar="N", help="so many at most (all)")
    if kind is not OwnerKind.ORG:
        add_org_flag(parser)


def print_owner(owner: Owner, *, as_json: bool, done: str) -> None:
    """One owner, after what was done to it."""
    if as_json:
        print(json.dumps(owner.to_json()))
    elif done == "show":
        print(table(_titles(owner.kind), [_row(owner)]))
    elif done == "create":
        print(owner.id)
    else:
        print(f"{owner.id} ({owner.name}): {done}d")


def _titles(kind: OwnerKind) -> tuple[str, ...]:
    more = {OwnerKind.ORG: (), OwnerKind.TEAM: ("org",), OwnerKind.USER: ("org", "team")}[kind]
    return ("id", "name", "state", "created", *more)


def _row(owner: Owner) -> list[object]:
    state = "active" if owner.disabled is None else "disabled"
    head: list[object] = [owner.id, owner.name, state, date_text(owner.created)]
    more = {OwnerKind.ORG: (), OwnerKind.TEAM: (owner.org_id,), OwnerKind.USER: (owner.org_id, owner.team_id or "-")}
    return [*head, *more[owner.kind]]
