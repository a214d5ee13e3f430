-- Jobs that are created because another one has died.

-- Creates those for jobs that this transaction has recorded as dead, in queues
-- that have it so. Their payload is what is known of the dead job but for what
-- may be large. One that was created here itself has the key on_dead in its
-- attributes: when it dies, there is no other, or they would never end.
--
-- It has no part of its own in whether the death is recorded: what it stores is
-- checked beforehand. A queue of notifications that is full would be an error
-- at commit, so then it notifies nobody, and a poll finds the job.
CREATE FUNCTION {{schema}}.tell_dead(ids uuid[]) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
    INSERT INTO {{schema}}.jobs (id, name, payload, max_attempts, attributes)
        SELECT {{schema}}.new_job_id(), q.on_dead, {{schema}}.obituary(j),
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

-- A dead job as the payload of another one: as Go shows a Job in JSON, without
-- its payload, result and metadata. The error is cut as Go cuts it, in case that
-- it was written by hand.
CREATE FUNCTION {{schema}}.obituary(job {{schema}}.jobs) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT jsonb_strip_nulls(jsonb_build_object(
        'owner', job.attributes -> 'owner', 'tags', job.attributes -> 'tags', 'unique_key', job.attributes -> 'unique_key',
        'id', job.id, 'name', job.name, 'queue', job.queue, 'priority', job.priority, 'status', job.status,
        'attempt', job.attempt, 'max_attempts', job.max_attempts,
        'run_at', {{schema}}.json_time(job.run_at), 'created_at', {{schema}}.json_time(job.created_at),
        'started_at', {{schema}}.json_time(job.started_at), 'finished_at', {{schema}}.json_time(job.finished_at),
        'errors', jsonb_build_array(jsonb_build_object('attempt', job.attempt, 'at', {{schema}}.json_time(job.finished_at),
            'error', left(coalesce(job.errors -> -1 ->> 'error', ''), 8192)))))
$$;
