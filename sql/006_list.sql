-- What people look at: lists of jobs. 010_stats.sql has how much waits in each queue.

-- Dead and cancelled jobs, which have no result, are few among the finished
-- ones, and what people look for. The condition must not name the status, which
-- is what a claim changes: no claim would be a HOT update any more (see jobs_live).
CREATE INDEX jobs_without_result ON {{schema}}.jobs (id) WHERE lane IS NULL AND result IS NULL;

-- The ids of the newest n jobs that have one of each list, contain these attributes,
-- were created from created_after to before created_before, and have an id before
-- this one; newest first. NULL is no condition.
--
-- Tags and owners have an index, and so has what is not finished, but not in the
-- order of ids: all that is found there has to be read. So first the newest
-- jobs are looked through, where n of what is frequent are found at once. What
-- is not frequent there is read by its index.
--
-- EXECUTE plans for these parameters and the size that the table has now.
-- OFFSET 0 keeps it to the indexes that are meant, whatever it believes about
-- the table; and as it may not sort, it reads in order what an index has in
-- order. Parallel workers would read on beyond the page.
CREATE FUNCTION {{schema}}.find_jobs(
    statuses text[], queues text[], names text[], attributes jsonb, created_after timestamptz, created_before timestamptz, before uuid, n integer
) RETURNS uuid[]
LANGUAGE plpgsql STABLE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_sort = off
    SET max_parallel_workers_per_gather = 0 AS $$
DECLARE
    c_unfinished CONSTANT text[] := '{pending, running, failed}';
    c_unresulted CONSTANT text[] := '{dead, cancelled}';
    c_newest     CONSTANT text := 'SELECT * FROM {{schema}}.jobs
        WHERE ($7 IS NULL OR id >= $7) AND ($8 IS NULL OR id < $8) ORDER BY id DESC LIMIT least(100 * $9, 100000)';
    c_with       CONSTANT text := ' AND ($4 IS NULL OR attributes @> $4) OFFSET 0';
    c_any        CONSTANT text := 'SELECT * FROM {{schema}}.jobs WHERE true';
    c_live       CONSTANT text := 'SELECT * FROM {{schema}}.jobs WHERE lane IS NOT NULL AND lane = ANY ($10)';
    c_live_in    CONSTANT text := 'SELECT j.* FROM unnest($11, $10) AS l (queue, lane), LATERAL (
        SELECT * FROM {{schema}}.jobs WHERE lane IS NOT NULL AND jobs.queue = l.queue AND jobs.lane = l.lane';
    c_without    CONSTANT text := 'SELECT * FROM {{schema}}.jobs WHERE lane IS NULL AND result IS NULL';
    -- What is not finished, in any queue or those that are asked for: of these, the
    -- lanes of the priorities that there are, and no others.
    v_live       text := c_live || c_with;
    v_queues     text[];
    v_lanes      smallint[];
    -- An id begins with the time at which it was made, by another clock than
    -- created_at and earlier or later than the transaction began.
    v_from   uuid := CASE WHEN find_jobs.created_after IS NOT NULL
        THEN {{schema}}.first_id_after(find_jobs.created_after - interval '1 day') END;
    v_to     uuid := least(find_jobs.before, CASE WHEN find_jobs.created_before IS NOT NULL
        THEN {{schema}}.first_id_after(find_jobs.created_before + interval '1 day') END);
    v_source text;
    v_ids    uuid[];
BEGIN
    -- A status is in these lanes of each priority; a running job stays in the one it was claimed from. What waits
    -- for other jobs is pending too.
    IF find_jobs.queues IS NULL THEN
        v_lanes := ARRAY(
            SELECT 3 * p.priority + l.lane FROM {{schema}}.lanes_of(find_jobs.statuses) AS l (lane), generate_series(-100, 100) AS p (priority)
            WHERE p.priority = 0 OR EXISTS (SELECT FROM {{schema}}.queues q WHERE q.prioritized)
            UNION ALL SELECT 303 WHERE 'pending' = ANY (find_jobs.statuses));
    ELSIF find_jobs.statuses && c_unfinished THEN
        v_live := c_live_in || c_with || ') AS j';
        SELECT array_agg(q.name), array_agg(a.lane) INTO v_queues, v_lanes
        FROM (SELECT DISTINCT a.name FROM unnest(find_jobs.queues) AS a (name)) AS q, LATERAL (
            SELECT 3 * p.priority + l.lane FROM unnest({{schema}}.priorities(q.name)) AS p (priority), {{schema}}.lanes_of(find_jobs.statuses) AS l (lane)
            UNION ALL SELECT 303 WHERE 'pending' = ANY (find_jobs.statuses)) AS a (lane);
    END IF;
    FOREACH v_source IN ARRAY CASE
        WHEN find_jobs.statuses <@ c_unresulted AND find_jobs.attributes IS NULL THEN ARRAY[c_without]
        WHEN find_jobs.statuses <@ c_unresulted THEN ARRAY[c_newest, c_without || c_with]
        WHEN find_jobs.statuses <@ c_unfinished THEN ARRAY[c_newest, v_live]
        WHEN find_jobs.statuses <@ (c_unfinished || c_unresulted)
            THEN ARRAY[c_newest, format('(%s) UNION ALL (%s)', v_live, c_without || c_with)]
        WHEN find_jobs.attributes IS NOT NULL THEN ARRAY[c_newest, c_any || c_with]
        ELSE ARRAY[c_any]
    END LOOP
        EXECUTE format($q$
            SELECT ARRAY(
                SELECT j.id FROM (%s) AS j
                WHERE ($1 IS NULL OR j.status = ANY ($1)) AND ($2 IS NULL OR j.queue = ANY ($2)) AND ($3 IS NULL OR j.name = ANY ($3))
                    AND ($4 IS NULL OR j.attributes @> $4) AND ($5 IS NULL OR j.created_at >= $5) AND ($6 IS NULL OR j.created_at < $6)
                    AND ($7 IS NULL OR j.id >= $7) AND ($8 IS NULL OR j.id < $8)
                ORDER BY j.id DESC LIMIT $9) $q$, v_source)
            INTO v_ids USING find_jobs.statuses, find_jobs.queues, find_jobs.names, find_jobs.attributes,
                find_jobs.created_after, find_jobs.created_before, v_from, v_to, find_jobs.n, v_lanes, v_queues;
        EXIT WHEN cardinality(v_ids) = find_jobs.n;
    END LOOP;
    RETURN v_ids;
END
$$;

-- The lanes that jobs of a priority of 0 are in, by their statuses.
CREATE FUNCTION {{schema}}.lanes_of(statuses text[]) RETURNS SETOF integer
LANGUAGE sql IMMUTABLE SET search_path = '' AS $$
    SELECT DISTINCT l.lane FROM (VALUES ('pending', 0), ('failed', 1), ('running', 0), ('running', 1), ('running', 2)) AS l (status, lane)
    WHERE l.status = ANY (statuses)
$$;

-- A page of the jobs that find_jobs finds, of which the first n have up to bytes
-- bytes of what may be large. One more tells that there is another page: if it is
-- not number n + 1, then ends says so. What is behind that is not read.
CREATE FUNCTION {{schema}}.list_jobs(
    statuses text[], queues text[], names text[], attributes jsonb, created_after timestamptz, created_before timestamptz, before uuid, n integer, bytes integer
) RETURNS TABLE (job {{schema}}.jobs, ends boolean)
LANGUAGE plpgsql STABLE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_sort = off
    SET max_parallel_workers_per_gather = 0 AS $$
DECLARE
    v_ids  uuid[] := {{schema}}.find_jobs(list_jobs.statuses, list_jobs.queues, list_jobs.names, list_jobs.attributes,
        list_jobs.created_after, list_jobs.created_before, list_jobs.before, list_jobs.n + 1);
    v_left integer := list_jobs.bytes;
BEGIN
    ends := false;
    IF v_ids = '{}' THEN
        RETURN; -- any index would do to find none
    END IF;
    FOR job IN SELECT j.* FROM {{schema}}.jobs j WHERE j.id = ANY (v_ids) ORDER BY j.id DESC LOOP
        ends := v_left < 0;
        RETURN NEXT;
        EXIT WHEN ends;
        v_left := v_left - octet_length(job.payload::text) - coalesce(octet_length(job.result::text), 0) - coalesce(octet_length(job.errors::text), 0);
    END LOOP;
END
$$;

-- The queues that somebody declared, and those of these that have jobs which are
-- not finished: of a service that has not called Migrate.
CREATE FUNCTION {{schema}}.known_queues(asked text[]) RETURNS SETOF text
LANGUAGE sql STABLE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off
    SET enable_hashjoin = off SET enable_mergejoin = off AS $$
    SELECT q.name FROM {{schema}}.queues q
    UNION
    SELECT a.name FROM unnest(known_queues.asked) AS a (name)
    WHERE EXISTS (SELECT FROM {{schema}}.jobs j WHERE j.queue = a.name AND j.lane IS NOT NULL)
$$;
