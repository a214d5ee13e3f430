-- When something is due again.

-- When the next job becomes due that a run with this filter would pick: NULL
-- if there is none or the queue is paused, a time not after now() if there is
-- one already. A running job counts from the moment its lease has run out.
-- names: only jobs of these names; NULL: of any. since: as in claim, also without
-- effect where jobs have priorities, but where nothing is due from then on, all is
-- looked at.
CREATE FUNCTION {{schema}}.next_due(queue text, status text DEFAULT 'any', names text[] DEFAULT NULL, since timestamptz DEFAULT NULL)
RETURNS timestamptz
LANGUAGE plpgsql STABLE SET search_path = '' SET jit = off SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    v_queue    {{schema}}.queues%ROWTYPE;
    v_head     {{schema}}.jobs%ROWTYPE;
    v_priority integer;
    v_pending  timestamptz;
    v_failed   timestamptz;
    v_due      timestamptz;
    v_lost     timestamptz;
    v_since    timestamptz;
BEGIN
    SELECT * INTO v_queue FROM {{schema}}.queues q WHERE q.name = next_due.queue;
    IF NOT FOUND THEN
        SELECT a.paused INTO v_queue.paused FROM {{schema}}.all_queues a;
    END IF;
    IF v_queue.paused THEN
        RETURN NULL;
    END IF;
    IF v_queue.base = 'blocking' THEN
        v_head := {{schema}}.blocking_head(v_queue);
        IF v_head.id IS NULL OR NOT (next_due.names IS NULL OR v_head.name = ANY (next_due.names)) THEN
            RETURN NULL;
        END IF;
        IF v_head.status = 'running' THEN
            RETURN coalesce((SELECT l.expires_at FROM {{schema}}.leases l WHERE l.id = v_head.lease_id), now());
        END IF;
        RETURN v_head.run_at;
    END IF;

    v_since := CASE WHEN NOT v_queue.prioritized THEN next_due.since END;
    FOREACH v_priority IN ARRAY CASE WHEN v_queue.prioritized THEN {{schema}}.priorities(next_due.queue) ELSE '{0}' END LOOP
        IF next_due.status <> 'failed' THEN
            v_pending := least(v_pending, {{schema}}.next_in_lane(next_due.queue, 3 * v_priority, next_due.names, v_since));
        END IF;
        IF next_due.status <> 'pending' THEN
            v_failed := least(v_failed, {{schema}}.next_in_lane(next_due.queue, 3 * v_priority + 1, next_due.names, v_since));
        END IF;
    END LOOP;
    v_due := least(v_pending, v_failed);
    IF v_queue.limited AND v_due <= now() THEN
        v_due := {{schema}}.next_start(next_due.queue, next_due.status <> 'failed', next_due.status <> 'pending', next_due.names);
    END IF;
    -- What is taken back from a lost lease is pending then.
    IF next_due.status <> 'failed' AND (v_due <= now()) IS NOT TRUE AND EXISTS (SELECT FROM {{schema}}.leases l WHERE l.expires_at <= now()) THEN
        SELECT min(l.expires_at) INTO v_lost FROM {{schema}}.leases l WHERE l.expires_at <= now() AND EXISTS (
            SELECT FROM {{schema}}.jobs j
            WHERE j.queue = next_due.queue AND j.lane IS NOT NULL AND j.status = 'running' AND j.lease_id = l.id
                AND (next_due.names IS NULL OR j.name = ANY (next_due.names)));
    END IF;
    RETURN least(v_due, v_lost);
END
$$;

-- The run_at of the first job in a lane that is not running. Where nothing is
-- due, and jobs of any name count, the index alone tells.
CREATE FUNCTION {{schema}}.next_in_lane(queue text, lane integer, names text[], since timestamptz) RETURNS timestamptz
LANGUAGE plpgsql STABLE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    v_since  timestamptz := coalesce(next_in_lane.since, '-infinity');
    v_run_at timestamptz;
BEGIN
    SELECT j.run_at INTO v_run_at FROM {{schema}}.jobs j
    WHERE j.queue = next_in_lane.queue AND j.lane = next_in_lane.lane AND j.run_at >= v_since ORDER BY j.run_at LIMIT 1;
    IF v_run_at <= now() OR next_in_lane.names IS NOT NULL AND v_run_at IS NOT NULL THEN
        SELECT j.run_at INTO v_run_at FROM {{schema}}.jobs j
        WHERE j.queue = next_in_lane.queue AND j.lane = next_in_lane.lane AND j.run_at >= v_since AND j.status <> 'running'
            AND (next_in_lane.names IS NULL OR j.name = ANY (next_in_lane.names))
        ORDER BY j.run_at LIMIT 1;
    END IF;
    IF next_in_lane.since IS NOT NULL AND (v_run_at <= now()) IS NOT TRUE THEN
        RETURN {{schema}}.next_in_lane(next_in_lane.queue, next_in_lane.lane, next_in_lane.names, NULL);
    END IF;
    RETURN v_run_at;
END
$$;
