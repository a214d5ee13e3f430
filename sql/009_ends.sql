-- How many jobs run in a queue with a MaxConcurrency or a MaxConcurrencyPerKey.
--
-- Counting them anew in each claim would need an index that each claim writes to.
-- So a claim, which holds the lock of queue_limits, counts there what it starts,
-- and marks those jobs as counted. Whatever ends an attempt takes that mark away,
-- and notes the end in a row of its own, in the same transaction: so it is noted
-- exactly once, and nobody waits. Claims add up the rows, and now and then take
-- what is in them off the number.

CREATE TABLE {{schema}}.ends (
    queue text    NOT NULL,
    n     integer NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
CREATE INDEX ends_of_queue ON {{schema}}.ends (queue);

-- Notes the ends of those of these jobs, which have just ended, that counted.
CREATE FUNCTION {{schema}}.note_ends_of(ids uuid[]) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
    INSERT INTO {{schema}}.ends (queue, n)
    SELECT j.queue, count(*) FROM {{schema}}.jobs j WHERE j.id = ANY (note_ends_of.ids) AND NOT j.counted GROUP BY j.queue;
END
$$;

-- How many jobs of a queue with these limits run.
CREATE FUNCTION {{schema}}.running_in(l {{schema}}.queue_limits) RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
    RETURN l.running - coalesce((SELECT sum(e.n) FROM {{schema}}.ends e WHERE e.queue = l.queue), 0);
END
$$;

-- How many of its jobs are marked as counted. All that is live is read for that.
CREATE FUNCTION {{schema}}.counted_in(queue text) RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
    RETURN (SELECT count(*) FROM {{schema}}.jobs j WHERE j.queue = counted_in.queue AND j.lane IS NOT NULL AND j.counted AND j.status = 'running');
END
$$;

-- Counts what runs in a queue, while no claim does.
CREATE FUNCTION {{schema}}.count_anew(queue text) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
    -- In one statement: what has ended is in none of the two, what has not is in both.
    WITH ended AS (DELETE FROM {{schema}}.ends e WHERE e.queue = count_anew.queue)
    UPDATE {{schema}}.queue_limits q SET running = {{schema}}.counted_in(count_anew.queue)
    WHERE q.queue = count_anew.queue;
END
$$;

-- Counts anew where the number is not that of the jobs: where somebody has deleted
-- or changed some by hand while they ran. All of it is seen in one moment.
CREATE FUNCTION {{schema}}.clean_up_counts() RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    v_queue text;
BEGIN
    FOR v_queue IN
        SELECT q.queue FROM {{schema}}.queue_limits q
        WHERE coalesce(q.max_running, q.max_running_per_key) IS NOT NULL AND {{schema}}.running_in(q) <> {{schema}}.counted_in(q.queue)
        ORDER BY q.queue
    LOOP
        PERFORM FROM {{schema}}.queue_limits q WHERE q.queue = v_queue FOR NO KEY UPDATE; -- no claim from here on
        CONTINUE WHEN NOT FOUND; -- declared anew, and counted
        UPDATE {{schema}}.jobs j SET slot = 0, counted = NULL
        WHERE j.queue = v_queue AND j.lane IS NOT NULL AND j.status <> 'running' AND (j.slot < -1 OR j.counted);
        PERFORM {{schema}}.count_anew(v_queue);
    END LOOP;
END
$$;
