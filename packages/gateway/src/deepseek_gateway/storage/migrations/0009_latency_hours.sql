-- How many finished requests of an hour lie in each bin of statistics.BIN_BOUNDS_MS, so that charts of weeks read no rows.
CREATE TABLE usage_latency_hours (
    hour INTEGER NOT NULL,
    measured TEXT NOT NULL CHECK (measured IN ('latency_ms', 'ttft_ms')),
    bin INTEGER NOT NULL,
    requests INTEGER NOT NULL
);

CREATE INDEX usage_latency_hours_by_hour ON usage_latency_hours (hour);
