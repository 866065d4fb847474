-- Times are Unix seconds. `disabled` NULL is in force.
CREATE TABLE orgs (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    created REAL NOT NULL,
    disabled REAL
);

CREATE INDEX orgs_by_created ON orgs (created, id);

CREATE TABLE teams (
    id TEXT PRIMARY KEY,
    org_id TEXT NOT NULL REFERENCES orgs (id),
    name TEXT NOT NULL,
    created REAL NOT NULL,
    disabled REAL,
    UNIQUE (org_id, name)
);

CREATE INDEX teams_by_created ON teams (created, id);

CREATE TABLE users (
    id TEXT PRIMARY KEY,
    org_id TEXT NOT NULL REFERENCES orgs (id),
    team_id TEXT REFERENCES teams (id),
    name TEXT NOT NULL,
    created REAL NOT NULL,
    disabled REAL,
    UNIQUE (org_id, name)
);

CREATE INDEX users_by_created ON users (created, id);
CREATE INDEX users_by_team ON users (team_id);

ALTER TABLE api_keys ADD COLUMN scopes TEXT NOT NULL DEFAULT '["inference"]'; -- JSON list
UPDATE api_keys SET scopes = '["admin-read", "admin-write"]' WHERE scope = 'admin';
ALTER TABLE api_keys DROP COLUMN scope;
ALTER TABLE api_keys ADD COLUMN org_id TEXT REFERENCES orgs (id);
ALTER TABLE api_keys ADD COLUMN team_id TEXT REFERENCES teams (id);
ALTER TABLE api_keys ADD COLUMN user_id TEXT REFERENCES users (id);
ALTER TABLE api_keys ADD COLUMN cidrs TEXT; -- JSON list; NULL allows every address
ALTER TABLE api_keys ADD COLUMN tags TEXT NOT NULL DEFAULT '[]'; -- JSON list, as in key_tags
ALTER TABLE api_keys ADD COLUMN disabled REAL;
ALTER TABLE api_keys ADD COLUMN last_used REAL; -- to the minute
ALTER TABLE api_keys ADD COLUMN created_by TEXT;

-- Lists are read in pages, in this order, by owner or tag.
CREATE INDEX api_keys_by_created ON api_keys (created, public_id);
CREATE INDEX api_keys_by_org ON api_keys (org_id, created, public_id);
CREATE INDEX api_keys_by_team ON api_keys (team_id, created, public_id);
CREATE INDEX api_keys_by_user ON api_keys (user_id, created, public_id);

CREATE TABLE key_tags (
    tag TEXT NOT NULL,
    created REAL NOT NULL, -- the key's, so that the primary key gives a tag's keys in their order
    public_id TEXT NOT NULL REFERENCES api_keys (public_id),
    PRIMARY KEY (tag, created, public_id)
);

CREATE INDEX key_tags_by_key ON key_tags (public_id);

CREATE INDEX ledger_by_key ON ledger (key_id, created);
