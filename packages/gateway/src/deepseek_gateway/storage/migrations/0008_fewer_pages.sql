-- What a commit of requests writes is mostly pages of indexes: one by key finds what five by owners did.

-- Under which owners a key has rows, as org:ID, team:ID or user:ID: the rows of an owner are found by its keys.
CREATE TABLE ledger_owners (
    owner TEXT NOT NULL,
    key_id TEXT NOT NULL,
    PRIMARY KEY (owner, key_id)
);

INSERT INTO ledger_owners (owner, key_id) SELECT DISTINCT 'org:' || org_id, key_id FROM ledger WHERE org_id IS NOT NULL;
INSERT INTO ledger_owners (owner, key_id)
SELECT DISTINCT 'team:' || team_id, key_id FROM ledger WHERE team_id IS NOT NULL;
INSERT INTO ledger_owners (owner, key_id)
SELECT DISTINCT 'user:' || user_id, key_id FROM ledger WHERE user_id IS NOT NULL;

DROP INDEX ledger_by_org;
DROP INDEX ledger_by_team;
DROP INDEX ledger_by_user;

-- Budgets add up sums of hours; they are written once an hour, so that these indexes cost nothing.
CREATE INDEX usage_hours_by_org ON usage_hours (org_id, hour);
CREATE INDEX usage_key_hours_by_key ON usage_key_hours (key_id, hour);

-- NULL where the ledger has a row of the request, by which it is found; 1 for refusals, and for all of before.
ALTER TABLE request_lives ADD COLUMN apart INTEGER DEFAULT 1;

DROP INDEX request_lives_by_key;
DROP INDEX request_lives_by_org;
DROP INDEX request_lives_by_client;
DROP INDEX audit_log_by_request;
CREATE INDEX request_lives_apart_by_key ON request_lives (key_id, created) WHERE apart IS NOT NULL;
CREATE INDEX request_lives_apart_by_org ON request_lives (org_id, created) WHERE apart IS NOT NULL;
CREATE INDEX request_lives_by_client ON request_lives (client_request_id, created) WHERE client_request_id IS NOT NULL;
CREATE INDEX audit_log_by_request ON audit_log (request_id) WHERE request_id IS NOT NULL;
