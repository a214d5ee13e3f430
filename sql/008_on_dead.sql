-- Jobs that are created because another one has died.

-- Creates those for jobs that this transaction has recorded as dead, in queues
-- that have it so. Their payload is the dead job as Go shows a Job in JSON, but
-- for its payload, result and metadata, which may be large; the first two are not
-- even read. The error is cut as Go cuts it, in case that it was written by hand.
-- One that was created here itself has the key on_dead in its
-- attributes: when it dies, there is no other, or they would never end.
--
-- It has no part of its own in whether the death is recorded: what it stores is
-- checked beforehand. A queue of notifications that is full would be an error
-- at commit, so then it notifies nobody, and a poll finds the job.
CREATE FUNCTION {{schema}}.tell_dead(ids uuid[]) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
    INSERT INTO {{schema}}.jobs (id, name, payload, max_attempts, attributes)
        SELECT {{schema}}.new_job_id(), q.on_dead, jsonb_strip_nulls(jsonb_build_object(
                'owner', j.attributes -> 'owner', 'tags', j.attributes -> 'tags', 'unique_key', j.attributes -> 'unique_key',
                'id', j.id, 'name', j.name, 'queue', j.queue, 'key', nullif(j.key, ''), 'priority', j.priority, 'status', j.status,
                'attempt', j.attempt, 'max_attempts', j.max_attempts,
                'run_at', {{schema}}.json_time(j.run_at), 'created_at', {{schema}}.json_time(j.created_at),
                'started_at', {{schema}}.json_time(j.started_at), 'finished_at', {{schema}}.json_time(j.finished_at),
                'errors', jsonb_build_array(jsonb_build_object('attempt', j.attempt, 'at', {{schema}}.json_time(j.finished_at),
                    'error', left(coalesce(j.errors -> -1 ->> 'error', ''), 8192))))),
            coalesce((SELECT d.max_attempts FROM {{schema}}.queues d WHERE d.name = 'default'), 10),
            jsonb_strip_nulls(jsonb_build_object('on_dead', j.id, 'traceparent', j.attributes -> 'traceparent'))
        FROM {{schema}}.jobs j JOIN {{schema}}.queues q ON q.name = j.queue
        WHERE j.id = ANY (tell_dead.ids) AND j.status = 'dead' AND q.on_dead <> '' AND (j.attributes ? 'on_dead') IS NOT TRUE
        ORDER BY j.id;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF pg_notification_queue_usage() < 0.9 THEN
        PERFORM {{schema}}.notify_created('default', now());
    END IF;
    IF EXISTS (SELECT FROM {{schema}}.queue_workers w WHERE w.wake AND w.queue = 'default') THEN
        PERFORM {{schema}}.wake_workers('default');
    END IF;
END
$$;

-- A time as Go reads it back in UTC.
CREATE FUNCTION {{schema}}.json_time(at timestamptz) RETURNS text
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
$$;
