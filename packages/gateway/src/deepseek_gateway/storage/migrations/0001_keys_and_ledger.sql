-- Times are Unix seconds. Only hashes of keys are kept.
CREATE TABLE api_keys (
    public_id TEXT PRIMARY KEY,
    secret_hash TEXT NOT NULL,
    previous_hash TEXT,
    previous_until REAL,
    name TEXT NOT NULL,
    scope TEXT NOT NULL CHECK (scope IN ('inference', 'admin')),
    models TEXT, -- JSON list; NULL allows every model
    requests_per_minute INTEGER,
    tokens_per_minute INTEGER,
    concurrent_requests INTEGER,
    tokens_per_month INTEGER,
    created REAL NOT NULL,
    expires REAL,
    revoked REAL
);

CREATE TABLE ledger (
    request_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    key_id TEXT NOT NULL,
    route TEXT NOT NULL,
    model TEXT,
    upstream TEXT,
    stream INTEGER NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('finished', 'cancelled', 'failed')),
    end_reason TEXT NOT NULL,
    http_status INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL CHECK (prompt_tokens >= 0),
    completion_tokens INTEGER NOT NULL CHECK (completion_tokens >= 0),
    cached_tokens INTEGER NOT NULL CHECK (cached_tokens >= 0),
    accuracy TEXT NOT NULL CHECK (accuracy IN ('exact', 'estimated')),
    latency_ms REAL NOT NULL,
    ttft_ms REAL,
    created REAL NOT NULL,
    PRIMARY KEY (request_id, attempt)
);

CREATE INDEX ledger_by_created ON ledger (created, key_id);

CREATE TABLE meta (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
);
