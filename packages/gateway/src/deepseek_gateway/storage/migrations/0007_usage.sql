-- The engine's own name for the model that answered, and what the ledger adds up to by hours of UTC (since 1970).
ALTER TABLE ledger ADD COLUMN served_model TEXT;

-- Without keys, so that there are few rows however many keys there are. '' is no value.
CREATE TABLE usage_hours (
    hour INTEGER NOT NULL,
    org_id TEXT NOT NULL,
    model TEXT NOT NULL,
    served_model TEXT NOT NULL,
    route TEXT NOT NULL,
    upstream TEXT NOT NULL,
    status TEXT NOT NULL,
    end_reason TEXT NOT NULL,
    requests INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    reasoning_tokens INTEGER NOT NULL,
    cost_nano INTEGER NOT NULL
);

CREATE INDEX usage_hours_by_hour ON usage_hours (hour);

CREATE TABLE usage_key_hours (
    hour INTEGER NOT NULL,
    key_id TEXT NOT NULL,
    org_id TEXT NOT NULL,
    team_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    model TEXT NOT NULL,
    served_model TEXT NOT NULL,
    status TEXT NOT NULL,
    requests INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    reasoning_tokens INTEGER NOT NULL,
    cost_nano INTEGER NOT NULL
);

CREATE INDEX usage_key_hours_by_hour ON usage_key_hours (hour);

-- Hours whose rows are newer than their rollups: set with the rows, by each process under its own name.
CREATE TABLE usage_marks (
    hour INTEGER NOT NULL,
    writer TEXT NOT NULL,
    stamp INTEGER NOT NULL, -- never the same twice of one writer
    PRIMARY KEY (hour, writer)
);

-- Rows of hours before this one were deleted: their rollups are all that is known, and rows found there are late ones.
CREATE TABLE usage_floor (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    hour INTEGER NOT NULL
);

INSERT INTO usage_floor (id, hour) VALUES (1, 0);
