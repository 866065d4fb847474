-- Each entry holds the hash of the one before it; see audit/chain.py. Times are Unix seconds.
CREATE TABLE audit_log (
    sequence INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    subject TEXT NOT NULL,
    before TEXT, -- JSON without secrets
    after TEXT,
    request_id TEXT,
    policy_version TEXT NOT NULL,
    list_version TEXT NOT NULL,
    previous_hash TEXT NOT NULL,
    hash TEXT NOT NULL
);

CREATE INDEX audit_log_by_subject ON audit_log (subject, sequence);
CREATE INDEX audit_log_by_request ON audit_log (request_id);
CREATE INDEX audit_log_by_time ON audit_log (at);

-- One row: where the chain ends.
CREATE TABLE audit_head (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    sequence INTEGER NOT NULL,
    hash TEXT NOT NULL,
    seal TEXT NOT NULL
);

INSERT INTO audit_head (id, sequence, hash, seal)
VALUES (1, 0, '0000000000000000000000000000000000000000000000000000000000000000', '');

-- The lives of requests, many to an audit entry: it holds the digest of their hashes, in the order of `position`.
CREATE TABLE request_lives (
    request_id TEXT PRIMARY KEY,
    client_request_id TEXT,
    key_id TEXT,
    org_id TEXT,
    created REAL NOT NULL,
    life TEXT NOT NULL, -- JSON
    hash TEXT NOT NULL,
    batch INTEGER NOT NULL,
    position INTEGER NOT NULL
);

CREATE INDEX request_lives_by_client ON request_lives (client_request_id, created);
CREATE INDEX request_lives_by_key ON request_lives (key_id, created);
CREATE INDEX request_lives_by_org ON request_lives (org_id, created);
CREATE INDEX request_lives_by_time ON request_lives (created);
CREATE INDEX request_lives_by_batch ON request_lives (batch, position);

-- Lives of batches up to `batch` may be deleted: an audit entry says when and why.
CREATE TABLE request_lives_floor (
    batch INTEGER PRIMARY KEY,
    entry INTEGER NOT NULL
);

-- Kept texts, off by default; see audit/vault.py. A subject's data key is wrapped by a master key that is not here.
CREATE TABLE payload_subjects (
    subject TEXT PRIMARY KEY, -- user:<id>, or key:<public id> for keys without a user
    wrapped BYTEA NOT NULL, -- empty once the subject was erased
    master TEXT NOT NULL, -- which master key, by a name that says nothing about it
    created REAL NOT NULL -- texts that are older were sealed with a key that is gone
);

CREATE TABLE payloads (
    request_id TEXT PRIMARY KEY,
    subject TEXT NOT NULL REFERENCES payload_subjects (subject),
    key_id TEXT NOT NULL,
    created REAL NOT NULL,
    expires REAL NOT NULL,
    is_masked INTEGER NOT NULL,
    sha256 TEXT NOT NULL, -- of `sealed`
    sealed BYTEA NOT NULL
);

CREATE INDEX payloads_by_subject ON payloads (subject, created);
CREATE INDEX payloads_by_expiry ON payloads (expires);

-- Whose texts are kept, and how long.
CREATE TABLE payload_policies (
    kind TEXT NOT NULL CHECK (kind IN ('org', 'key')),
    id TEXT NOT NULL,
    days INTEGER NOT NULL CHECK (days >= 0), -- 0: none, also where the organisation's policy says otherwise
    mask_pii INTEGER NOT NULL,
    PRIMARY KEY (kind, id)
);
