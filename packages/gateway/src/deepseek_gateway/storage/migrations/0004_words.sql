-- Word lists: versions never change once written. Times are Unix seconds.
CREATE TABLE word_lists (
    name TEXT PRIMARY KEY,
    active_version INTEGER, -- NULL: the list is off
    created REAL NOT NULL
);

CREATE TABLE word_versions (
    list TEXT NOT NULL REFERENCES word_lists (name),
    version INTEGER NOT NULL,
    entries INTEGER NOT NULL,
    sha256 TEXT NOT NULL, -- of the entries, checked when they are loaded
    note TEXT NOT NULL,
    created REAL NOT NULL,
    created_by TEXT NOT NULL,
    PRIMARY KEY (list, version)
);

CREATE TABLE word_entries (
    list TEXT NOT NULL,
    version INTEGER NOT NULL,
    number INTEGER NOT NULL,
    pattern TEXT NOT NULL,
    level TEXT NOT NULL,
    category TEXT NOT NULL,
    direction TEXT NOT NULL,
    match TEXT NOT NULL,
    language TEXT NOT NULL,
    valid_from REAL,
    valid_until REAL,
    source TEXT NOT NULL,
    PRIMARY KEY (list, version, number)
);

-- What a list does for whom; without a row an active list does what its entries say, for everybody.
CREATE TABLE word_policies (
    scope TEXT NOT NULL CHECK (scope IN ('all', 'org', 'model', 'key')),
    scope_id TEXT NOT NULL, -- '' for all
    list TEXT NOT NULL REFERENCES word_lists (name),
    level TEXT NOT NULL CHECK (level IN ('listed', 'block', 'mask', 'review', 'off')),
    on_failure TEXT NOT NULL CHECK (on_failure IN ('closed', 'open')),
    PRIMARY KEY (scope, scope_id, list)
);

-- Goes up with each change of the above: gateways look at it to know when to load again.
CREATE TABLE word_state (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    stamp INTEGER NOT NULL
);

INSERT INTO word_state (id, stamp) VALUES (1, 0);

-- Hits that a person should look at. The words are not here: where payloads are kept, they are sealed there.
CREATE TABLE word_reviews (
    id TEXT PRIMARY KEY,
    created REAL NOT NULL,
    request_id TEXT NOT NULL,
    key_id TEXT NOT NULL,
    model TEXT,
    direction TEXT NOT NULL,
    field TEXT NOT NULL,
    choice INTEGER NOT NULL,
    rule TEXT NOT NULL, -- list@version#number
    category TEXT NOT NULL,
    level TEXT NOT NULL,
    hit_start INTEGER NOT NULL,
    hit_end INTEGER NOT NULL,
    hit_hmac TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('new', 'confirmed', 'dismissed')),
    decided REAL,
    decided_by TEXT,
    note TEXT NOT NULL
);

CREATE INDEX word_reviews_by_state ON word_reviews (state, created);
CREATE INDEX word_reviews_by_request ON word_reviews (request_id);
