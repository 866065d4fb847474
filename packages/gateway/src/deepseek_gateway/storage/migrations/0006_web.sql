-- Who may sign in to the pages, who is signed in, and who guessed wrong. Times are Unix seconds.
CREATE TABLE web_accounts (
    name TEXT PRIMARY KEY,
    password_hash TEXT NOT NULL, -- argon2id, with its parameters and salt
    role TEXT NOT NULL CHECK (role IN ('viewer', 'admin')),
    created REAL NOT NULL,
    changed REAL NOT NULL
);

CREATE TABLE web_sessions (
    handle TEXT PRIMARY KEY, -- SHA-256 of the cookie's value
    account TEXT NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('viewer', 'admin')),
    source TEXT NOT NULL CHECK (source IN ('password', 'oidc')),
    agent TEXT NOT NULL, -- the browser, as it calls itself
    created REAL NOT NULL,
    seen REAL NOT NULL,
    expires REAL NOT NULL
);

CREATE INDEX web_sessions_by_account ON web_sessions (account);

CREATE TABLE web_login_failures (
    subject TEXT PRIMARY KEY, -- account:NAME or address:IP
    failures INTEGER NOT NULL,
    since REAL NOT NULL
);
