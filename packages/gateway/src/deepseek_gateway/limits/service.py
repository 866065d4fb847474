"""Administration of limit rules, whatever the way in."""

from dataclasses import dataclass

from deepseek_gateway.auth.acts import Act, record_act
from deepseek_gateway.auth.principal import Principal
from deepseek_gateway.auth.records import Scope
from deepseek_gateway.errors import ApiError
from deepseek_gateway.limits.drafts import LimitDraft, rule_json
from deepseek_gateway.limits.rules import LimitRule
from deepseek_gateway.people.records import OwnerKind
from deepseek_gateway.storage.atomic import atomic
from deepseek_gateway.storage.rules import LimitEvent
from deepseek_gateway.storage.store import Store


@dataclass(frozen=True, slots=True)
class LimitService:
    """Rules of one store; what changes is in force on every gateway within 2 seconds. Calls block on the store.

    Every method takes who asks first, and raises ApiError: 403, it may not; 404, it cannot see such a rule; 422, no
    request can ever match the rule, as its subjects do not exist or are of different organisations. Who
    administers one organisation sees its rules and changes none: they bind that organisation.
    """

    store: Store

    @atomic
    def set(self, by: Principal, draft: LimitDraft, rule_id: str | None = None) -> LimitRule:
        """A new rule, or another in the place of the one with this id."""
        by.require(Scope.ADMIN_WRITE)
        by.require_everything()
        before = None if rule_id is None else self._found(by, rule_id)
        rule = draft.to_rule(rule_id)
        self._check_subjects(rule)
        self.store.rules.insert(rule)
        self._record(by, "limit.create" if before is None else "limit.change", before, rule)
        return rule

    @atomic
    def remove(self, by: Principal, rule_id: str) -> LimitRule:
        """Forget a rule."""
        by.require(Scope.ADMIN_WRITE)
        by.require_everything()
        rule = self._found(by, rule_id)
        self.store.rules.delete(rule_id)
        self._record(by, "limit.delete", rule, None)
        return rule

    def get(self, by: Principal, rule_id: str) -> LimitRule:
        """One rule."""
        by.require(Scope.ADMIN_READ)
        return self._found(by, rule_id)

    def all(self, by: Principal) -> list[LimitRule]:
        """All rules that the caller may see, the oldest first."""
        by.require(Scope.ADMIN_READ)
        return [rule for rule in self.store.rules.all() if by.org_id is None or rule.org_id == by.org_id]

    def events(self, by: Principal, limit: int) -> list[LimitEvent]:
        """What soft limits had to say, the newest first."""
        by.require(Scope.ADMIN_READ)
        events = self.store.rules.events(limit if by.org_id is None else 10_000)
        return [event for event in events if by.org_id is None or event.org_id == by.org_id][:limit]

    def _found(self, by: Principal, rule_id: str) -> LimitRule:
        rule = self.store.rules.find(rule_id)
        if rule is None or (by.org_id is not None and rule.org_id != by.org_id):
            raise ApiError(404, f"no limit has the id {rule_id[:80]!r}: see `deepseek-gateway limit list`")
        return rule

    def _check_subjects(self, rule: LimitRule) -> None:
        org_id = None if rule.org_id in {None, "*"} else rule.org_id
        if org_id is not None:
            self._organisation_of(OwnerKind.ORG, org_id)
        for kind, owner_id in ((OwnerKind.TEAM, rule.team_id), (OwnerKind.USER, rule.user_id)):
            if owner_id in {None, "*"}:
                continue
            assert owner_id is not None
            if self._organisation_of(kind, owner_id) != org_id and org_id is not None:
                raise _never_matches(kind.field, owner_id, org_id)
        if rule.key_id in {None, "*"}:
            return
        assert rule.key_id is not None
        key = self.store.keys.find(rule.key_id)
        if key is None:
            raise ApiError(422, f"key_id={rule.key_id!r}: there is no such key", param="key_id")
        if org_id is not None and key.org_id != org_id:
            raise _never_matches("key_id", rule.key_id, org_id)

    def _organisation_of(self, kind: OwnerKind, owner_id: str) -> str | None:
        owner = self.store.people.find(kind, owner_id)
        if owner is None:
            raise ApiError(422, f"{kind.field}={owner_id!r}: there is no such {kind.noun}", param=kind.field)
        return owner.organisation

    def _record(self, by: Principal, action: str, before: LimitRule | None, after: LimitRule | None) -> None:
        rule = after or before
        assert rule is not None
        shown = [None if each is None else rule_json(each) for each in (before, after)]
        org_id = None if rule.org_id == "*" else rule.org_id
        record_act(self.store.audit, Act(by, action, rule.id, org_id, before=shown[0], after=shown[1]))


def _never_matches(field: str, value: str, org_id: str) -> ApiError:
    message = f"{field}={value!r} is not of org_id={org_id!r}: no request would match"
    return ApiError(422, message, param=field, code="never_matches")
