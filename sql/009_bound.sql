-- Queues with a bound: a creation beyond it is refused.

-- The row that creations in a queue with a bound write, one after another, so
-- that each counts what those before have created. It is no row of queues, which
-- claims and pauses lock: a creation may be in a transaction that lasts.
CREATE TABLE {{schema}}.queue_bounds (
    queue     text   CONSTRAINT queue_bounds_pkey PRIMARY KEY,
    creations bigint NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 200);

-- How many jobs may be created from here on in those of these queues that have a
-- bound, by this transaction. The order of the rows keeps two creations from
-- waiting for each other.
--
-- It counts up to as many as may wait. That the row is written, and not only
-- locked, makes a transaction that can't see what the one before has created
-- (REPEATABLE READ) fail as it does for any row.
CREATE FUNCTION {{schema}}.room_to_create(queues text[]) RETURNS TABLE (queue text, room bigint)
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
BEGIN
    INSERT INTO {{schema}}.queue_bounds AS b (queue, creations)
    SELECT q.name, 1 FROM {{schema}}.queues q WHERE q.name = ANY (room_to_create.queues) AND q.max_pending IS NOT NULL ORDER BY q.name
    ON CONFLICT ON CONSTRAINT queue_bounds_pkey DO UPDATE SET creations = b.creations + 1;
    RETURN QUERY
        SELECT q.name, greatest(q.max_pending - (
            SELECT count(*) FROM (
                SELECT FROM unnest({{schema}}.priorities_of(q.name)) AS p (priority), LATERAL (
                    SELECT FROM {{schema}}.jobs j WHERE j.queue = q.name AND j.lane = 3 * p.priority AND j.status = 'pending'
                    LIMIT q.max_pending) AS w
                LIMIT q.max_pending) AS waiting), 0)
        FROM {{schema}}.queues q WHERE q.name = ANY (room_to_create.queues) AND q.max_pending IS NOT NULL;
END
$$;

-- Refuses a creation in a queue that is full.
CREATE FUNCTION {{schema}}.refuse_full(queue text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
BEGIN
    RAISE EXCEPTION 'queue % has % pending jobs, as many as may be', {{schema}}.shown(queue),
        (SELECT q.max_pending FROM {{schema}}.queues q WHERE q.name = refuse_full.queue)
        USING ERRCODE = 'JQ001', HINT = 'Create the job again when some of them were started.';
END
$$;
