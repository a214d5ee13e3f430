-- What Migrate says of the limits and bounds of queues.

-- Sets the limits of a queue, all NULL for none. They count from the commit on,
-- with what runs then. Returns whether others were said before.
CREATE FUNCTION {{schema}}.declare_limits(
    queue text, max_running integer, max_running_per_key integer, rate integer, rate_us bigint, key_rate integer, key_rate_us bigint,
    key_round integer, skip_failed boolean
) RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
DECLARE
    v_before {{schema}}.queue_limits%ROWTYPE;
    v_after  {{schema}}.queue_limits%ROWTYPE;
    v_keys   boolean; -- one job of a key runs at once, and keeps it
BEGIN
    SELECT * INTO v_before FROM {{schema}}.queue_limits l WHERE l.queue = declare_limits.queue;
    v_after := v_before;
    v_after.queue := declare_limits.queue;
    v_after.max_running := declare_limits.max_running;
    v_after.max_running_per_key := declare_limits.max_running_per_key;
    v_after.rate := declare_limits.rate;
    v_after.rate_per := declare_limits.rate_us * interval '1 microsecond';
    v_after.key_rate := declare_limits.key_rate;
    v_after.key_rate_per := declare_limits.key_rate_us * interval '1 microsecond';
    v_after.key_round := declare_limits.key_round;
    v_after.skip_failed := declare_limits.skip_failed;
    IF coalesce(v_after.max_running, v_after.max_running_per_key, v_after.rate, v_after.key_rate, v_after.key_round) IS NULL THEN
        v_after := NULL;
    END IF;
    IF v_after.queue IS NULL AND v_before.queue IS NULL OR v_after IS NOT DISTINCT FROM v_before THEN
        RETURN false;
    END IF;

    -- Waits for the claims under way, and keeps others off until the commit: none
    -- of them goes by the limits there were before.
    PERFORM pg_advisory_xact_lock(hashtextextended('{{schema_name}}.' || declare_limits.queue, 7041974));
    DELETE FROM {{schema}}.queue_limits l WHERE l.queue = declare_limits.queue;
    IF v_after.queue IS NOT NULL THEN
        v_after.last_key := coalesce(v_before.last_key, '');
        v_after.last_taken := coalesce(v_before.last_taken, 0);
        v_after.running := 0; -- count_anew says
        INSERT INTO {{schema}}.queue_limits SELECT v_after.*;
    END IF;
    UPDATE {{schema}}.queues q SET limited = v_after.queue IS NOT NULL WHERE q.name = declare_limits.queue;
    v_keys := coalesce(v_after.max_running_per_key = 1 AND NOT v_after.skip_failed, false);
    -- One that is locked is about to be finished.
    UPDATE {{schema}}.jobs j
    SET slot = CASE WHEN v_after.max_running_per_key IS NULL THEN 0
            WHEN j.status = 'running' THEN CASE WHEN j.slot IN (-1, -3) AND v_keys THEN -3 ELSE -2 END
            WHEN v_keys THEN j.slot ELSE 0 END,
        counted = CASE WHEN j.status = 'running' AND coalesce(v_after.max_running, v_after.max_running_per_key) IS NOT NULL THEN true END
    WHERE j.id = ANY (ARRAY(
        SELECT r.id FROM {{schema}}.jobs r
        WHERE r.queue = declare_limits.queue AND r.lane IS NOT NULL AND (r.status = 'running' OR r.slot < 0)
        ORDER BY r.id FOR NO KEY UPDATE SKIP LOCKED));
    PERFORM {{schema}}.count_anew(declare_limits.queue);
    RETURN v_before.queue IS NOT NULL;
END
$$;
