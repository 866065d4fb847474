
CREATE TRIGGER audit_log_no_update BEFORE UPDATE ON audit_log
BEGIN SELECT RAISE(ABORT, 'audit_log is append-only'); END;

CREATE TRIGGER audit_log_no_delete BEFORE DELETE ON audit_log
BEGIN SELECT RAISE(ABORT, 'audit_log is append-only'); END;

CREATE TRIGGER audit_head_only_grows BEFORE UPDATE ON audit_head WHEN NEW.sequence <= OLD.sequence
BEGIN SELECT RAISE(ABORT, 'audit_head only grows'); END;

CREATE TRIGGER audit_head_no_delete BEFORE DELETE ON audit_head
BEGIN SELECT RAISE(ABORT, 'audit_head only grows'); END;

CREATE TRIGGER request_lives_no_update BEFORE UPDATE ON request_lives
BEGIN SELECT RAISE(ABORT, 'request_lives is append-only'); END;

CREATE TRIGGER request_lives_no_delete BEFORE DELETE ON request_lives
WHEN OLD.batch > (SELECT coalesce(max(batch), 0) FROM request_lives_floor)
BEGIN SELECT RAISE(ABORT, 'request_lives is append-only up to its days of retention'); END;
