
INSERT INTO usage_marks (hour, writer, stamp)
SELECT DISTINCT CAST(floor(created / 3600) AS BIGINT), 'migration-9', 1 FROM ledger;
