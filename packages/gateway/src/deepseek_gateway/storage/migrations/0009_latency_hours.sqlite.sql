
INSERT INTO usage_marks (hour, writer, stamp)
SELECT DISTINCT CAST(created / 3600 AS INTEGER), 'migration-9', 1 FROM ledger;
