
CREATE FUNCTION gateway_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
END $$;

CREATE FUNCTION gateway_only_grows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.sequence <= OLD.sequence THEN
        RAISE EXCEPTION '% only grows', TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE FUNCTION gateway_keeps_lives() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.batch > (SELECT coalesce(max(batch), 0) FROM request_lives_floor) THEN
        RAISE EXCEPTION '% is append-only up to its days of retention', TG_TABLE_NAME
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN OLD;
END $$;

CREATE TRIGGER audit_log_append_only BEFORE UPDATE OR DELETE ON audit_log
    FOR EACH ROW EXECUTE FUNCTION gateway_append_only();
CREATE TRIGGER audit_log_no_truncate BEFORE TRUNCATE ON audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION gateway_append_only();
CREATE TRIGGER audit_head_only_grows BEFORE UPDATE ON audit_head
    FOR EACH ROW EXECUTE FUNCTION gateway_only_grows();
CREATE TRIGGER audit_head_no_delete BEFORE DELETE ON audit_head
    FOR EACH ROW EXECUTE FUNCTION gateway_append_only();
CREATE TRIGGER audit_head_no_truncate BEFORE TRUNCATE ON audit_head
    FOR EACH STATEMENT EXECUTE FUNCTION gateway_append_only();
CREATE TRIGGER request_lives_no_update BEFORE UPDATE ON request_lives
    FOR EACH ROW EXECUTE FUNCTION gateway_append_only();
CREATE TRIGGER request_lives_no_delete BEFORE DELETE ON request_lives
    FOR EACH ROW EXECUTE FUNCTION gateway_keeps_lives();
CREATE TRIGGER request_lives_no_truncate BEFORE TRUNCATE ON request_lives
    FOR EACH STATEMENT EXECUTE FUNCTION gateway_append_only();
