-- Queues that are paused: nothing of them is claimed, so nobody starts their jobs.

-- Pauses a queue, or all of them ('*'), from the commit on: running jobs go on,
-- jobs are created, but none is started until resume_queue is called. A claim
-- that is under way at the commit may still start some (see await_claims).
CREATE FUNCTION {{schema}}.pause_queue(queue text) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = '' AS $$
BEGIN
    PERFORM {{schema}}.set_paused('pause_queue', pause_queue.queue, true);
END
$$;

-- Ends the pause of a queue, or of all of them ('*'). At the commit resident
-- processes look for what is due, and workers with wake are called for it.
CREATE FUNCTION {{schema}}.resume_queue(queue text) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = '' AS $$
DECLARE
    v_resumed text[] := {{schema}}.set_paused('resume_queue', resume_queue.queue, false);
    v_queue   text;
BEGIN
    FOREACH v_queue IN ARRAY v_resumed LOOP
        IF EXISTS (SELECT FROM {{schema}}.queue_workers w WHERE w.wake AND w.queue = v_queue AND {{schema}}.next_due(w.queue, w.status) <= now()) THEN
            PERFORM {{schema}}.wake_workers(v_queue);
        END IF;
    END LOOP;
    IF cardinality(v_resumed) > 0 THEN
        PERFORM {{schema}}.notify_created('', now()); -- not of one queue: when its next job is due has to be asked too
    END IF;
END
$$;

-- Returns the queues that were not so before. For all of them it takes the lock
-- of Migrate, and that of the row which others read when they add a queue: one
-- that is just being added is among them. Queues are locked in the order in which
-- Migrate and prioritize do that.
CREATE FUNCTION {{schema}}.set_paused(operation text, queue text, paused boolean) RETURNS text[]
LANGUAGE plpgsql VOLATILE SET search_path = '' AS $$
DECLARE
    v_queue   text := coalesce(nullif(set_paused.queue, ''), 'default');
    v_changed text[];
BEGIN
    IF v_queue = '*' THEN
        PERFORM pg_advisory_xact_lock(hashtextextended('{{schema_name}}', 7041973));
        UPDATE {{schema}}.all_queues a SET paused = set_paused.paused;
    ELSIF v_queue = 'failed' THEN
        RAISE EXCEPTION '%: queue ''failed'' is a view of the failed jobs of ''default'', not a place: expected ''default''', operation
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF NOT EXISTS (SELECT FROM {{schema}}.queues q WHERE q.name = v_queue) THEN
        RAISE EXCEPTION '%: queue %: nobody declared it; known are %', operation, {{schema}}.shown(v_queue),
            (SELECT string_agg(q.name, ', ' ORDER BY q.name) FROM {{schema}}.queues q)
            USING ERRCODE = 'undefined_object', HINT = 'Declare it in Config.Queues and call Migrate.';
    END IF;
    v_changed := ARRAY(
        SELECT q.name FROM {{schema}}.queues q WHERE v_queue IN (q.name, '*') AND q.paused <> set_paused.paused
        ORDER BY q.name COLLATE "C" FOR NO KEY UPDATE);
    UPDATE {{schema}}.queues q SET paused = set_paused.paused WHERE q.name = ANY (v_changed);
    RETURN v_changed;
END
$$;

-- Waits until no claim of a queue, or of any ('*'), is under way that has begun
-- before. Called after the commit of a pause, it returns when nothing more is
-- started. (A blocking queue's claims hold its row, so the pause itself has
-- waited for them.)
CREATE FUNCTION {{schema}}.await_claims(queue text) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = '' AS $$
DECLARE
    v_queue text;
BEGIN
    FOR v_queue IN SELECT q.name FROM {{schema}}.queues q WHERE await_claims.queue IN (q.name, '*') ORDER BY q.name COLLATE "C" LOOP
        PERFORM pg_advisory_xact_lock(hashtextextended('{{schema_name}}.' || v_queue, 7041974));
    END LOOP;
END
$$;
