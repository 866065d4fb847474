-- Rules, prices on ledger rows, prepaid balances, and what soft limits had to say. Money is in nano-units.
ALTER TABLE ledger ADD COLUMN org_id TEXT;
ALTER TABLE ledger ADD COLUMN team_id TEXT;
ALTER TABLE ledger ADD COLUMN user_id TEXT;
ALTER TABLE ledger ADD COLUMN reasoning_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE ledger ADD COLUMN cost_nano INTEGER NOT NULL DEFAULT 0;
ALTER TABLE ledger ADD COLUMN price_version TEXT;

-- A budget is rebuilt from the rows of its owner in its window.
CREATE INDEX ledger_by_org ON ledger (org_id, created);
CREATE INDEX ledger_by_team ON ledger (team_id, created);
CREATE INDEX ledger_by_user ON ledger (user_id, created);

CREATE TABLE limit_rules (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    amount INTEGER NOT NULL CHECK (amount >= 1),
    org_id TEXT, -- NULL is any, * is each one for itself
    team_id TEXT,
    user_id TEXT,
    key_id TEXT,
    model TEXT,
    time_zone TEXT NOT NULL,
    soft INTEGER NOT NULL,
    on_failure TEXT NOT NULL CHECK (on_failure IN ('deny', 'share')),
    created REAL NOT NULL
);

-- Counts changes, so that gateways see with one small look whether their copy of the rules is old.
CREATE TABLE limit_versions (
    name TEXT PRIMARY KEY,
    version INTEGER NOT NULL
);
INSERT INTO limit_versions VALUES ('rules', 0);
INSERT INTO limit_versions VALUES ('balances', 0);

CREATE TABLE balances (
    account TEXT PRIMARY KEY, -- org:ID, or key:ID where there is no organisation
    currency TEXT NOT NULL,
    topped_up_nano INTEGER NOT NULL,
    granted_nano INTEGER NOT NULL,
    spent_nano INTEGER NOT NULL,
    version INTEGER NOT NULL -- that of limit_versions at the last change of credit
);

CREATE INDEX balances_by_version ON balances (version);

CREATE TABLE balance_entries (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('top_up', 'grant')),
    amount_nano INTEGER NOT NULL,
    note TEXT NOT NULL,
    created REAL NOT NULL
);

CREATE INDEX balance_entries_by_account ON balance_entries (account, created);

CREATE TABLE limit_events (
    rule_id TEXT NOT NULL,
    counter TEXT NOT NULL,
    since REAL NOT NULL, -- start of the window, or of the minute
    kind TEXT NOT NULL,
    amount INTEGER NOT NULL,
    taken INTEGER NOT NULL,
    org_id TEXT,
    team_id TEXT,
    user_id TEXT,
    key_id TEXT,
    model TEXT,
    request_id TEXT NOT NULL,
    created REAL NOT NULL,
    PRIMARY KEY (counter, since)
);

CREATE INDEX limit_events_by_created ON limit_events (created);
