-- The success of a job inside its handler's own transaction.

-- Records that the attempt that began with this claim has succeeded, as finish
-- does: true if so, false if this was recorded before, NULL if the job is not
-- that attempt's any more (it was rescued, cancelled or claimed again). A claim
-- has one lease, so the number of the claim stands for both.
--
-- The caller's transaction holds the row from here to its end, which may take a
-- while: the lease may run out meanwhile. Whoever else wants to write running
-- jobs passes over it (settle, rescue, clean_up), and sees it as running, so
-- that a blocking queue stays held; finish is only sent for it when the handler
-- has returned, by itself. Here, the short wait for one of those is bounded too:
-- what takes longer is another transaction of the same handler.
CREATE FUNCTION {{schema}}.complete(id uuid, claims integer, result text) RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET lock_timeout = '5s' AS $$
DECLARE
    v_awaited boolean;
    v_counted text; -- the queue that it counted in
BEGIN
    UPDATE {{schema}}.jobs j
    SET status = 'succeeded', lease_id = NULL, cancelling = NULL, lane = NULL, slot = 0, counted = CASE WHEN j.counted THEN false END, result = complete.result::jsonb,
        -- Not now(), which is when the caller's transaction began.
        finished_at = clock_timestamp()
    WHERE j.id = complete.id AND j.claims = complete.claims AND j.status = 'running'
    RETURNING j.awaited, CASE WHEN NOT j.counted THEN j.queue END INTO v_awaited, v_counted;
    IF FOUND THEN
        IF v_counted IS NOT NULL THEN
            INSERT INTO {{schema}}.ends (queue, n) VALUES (v_counted, 1);
        END IF;
        IF v_awaited THEN
            PERFORM set_config('lock_timeout', '0', true); -- others that finish before the same job are waited for
            PERFORM {{schema}}.release_dependants(ARRAY[complete.id]);
        END IF;
        RETURN true;
    END IF;
    RETURN (SELECT false FROM {{schema}}.jobs j
        WHERE j.id = complete.id AND j.claims = complete.claims AND j.status = 'succeeded');
END
$$;
