-- How much waits in each queue, and what for.

-- What is not finished, counted by queue: of those that are declared, in the
-- database or by the caller, and those that have such jobs. Of a blocking queue
-- with jobs, held_by is the one before which no other is started.
CREATE FUNCTION {{schema}}.queue_stats(declared text[] DEFAULT '{}') RETURNS TABLE (
    queue text, pending bigint, scheduled bigint, waiting bigint, failed bigint, running bigint, oldest_due_at timestamptz, paused boolean,
    rate_limited_until timestamptz, held_by jsonb)
LANGUAGE sql STABLE SET search_path = '' SET jit = off SET enable_seqscan = off AS $$
    SELECT s.queue, s.pending, s.scheduled, s.waiting, s.failed, s.running, s.oldest_due_at, coalesce(s.paused, (SELECT a.paused FROM {{schema}}.all_queues a)),
        CASE WHEN q.limited THEN {{schema}}.rate_limited_until(q.name) END,
        CASE WHEN q.base = 'blocking' AND s.pending + s.scheduled + s.failed + s.running > 0 THEN (
            SELECT jsonb_build_object('id', h.id, 'name', h.name, 'status', h.status, 'attempt', h.attempt,
                'run_at', {{schema}}.json_time(h.run_at), 'started_at', {{schema}}.json_time(h.started_at))
            FROM {{schema}}.blocking_head(q) AS h WHERE h.id IS NOT NULL) END
    FROM (
        SELECT l.queue,
            count(*) FILTER (WHERE l.status = 'pending' AND l.lane < 303 AND l.run_at <= now()) AS pending,
            count(*) FILTER (WHERE l.status = 'pending' AND l.lane < 303 AND l.run_at > now()) AS scheduled,
            count(*) FILTER (WHERE l.lane = 303) AS waiting,
            count(*) FILTER (WHERE l.status = 'failed') AS failed,
            count(*) FILTER (WHERE l.status = 'running') AS running,
            min(l.run_at) FILTER (WHERE l.status IN ('pending', 'failed') AND l.lane < 303 AND l.run_at <= now()) AS oldest_due_at,
            bool_or(l.paused) AS paused
        FROM (
            SELECT j.queue::text, j.status::text, j.lane::integer, j.run_at::timestamptz, NULL::boolean AS paused FROM {{schema}}.jobs j WHERE j.lane IS NOT NULL
            UNION ALL
            SELECT q.name, NULL, NULL, NULL, q.paused FROM {{schema}}.queues q
            UNION ALL
            SELECT d.name, NULL, NULL, NULL, NULL FROM unnest(queue_stats.declared) AS d (name)
        ) AS l
        GROUP BY l.queue
    ) AS s LEFT JOIN {{schema}}.queues q ON q.name = s.queue
$$;
