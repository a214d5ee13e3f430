-- How many jobs run in a queue with a MaxConcurrency or a MaxConcurrencyPerKey.
--
-- Counting them anew in each claim would need an index that each claim writes to.
-- So a claim, which holds the lock of queue_limits, counts there what it starts,
-- and marks those jobs as counted. Whatever ends an attempt takes that mark away,
-- and notes the end in a row of its own, in the same transaction: so it is noted
-- exactly once, and nobody waits. The next claim adds up the rows and deletes them.

CREATE TABLE {{schema}}.ends (
    queue text    NOT NULL,
    n     integer NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
CREATE INDEX ends_of_queue ON {{schema}}.ends (queue);

-- Notes ends of jobs that counted in these queues.
CREATE FUNCTION {{schema}}.note_ends(queues text[]) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = '' AS $$
BEGIN
    INSERT INTO {{schema}}.ends (queue, n) SELECT q.name, count(*) FROM unnest(note_ends.queues) AS q (name) GROUP BY q.name;
END
$$;

-- Notes the ends of those of these jobs, which have just ended, that counted.
CREATE FUNCTION {{schema}}.note_ends_of(ids uuid[]) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
    PERFORM {{schema}}.note_ends(array_agg(j.queue::text)) FROM {{schema}}.jobs j WHERE j.id = ANY (note_ends_of.ids) AND NOT j.counted
    HAVING count(*) > 0;
END
$$;

-- Counts so many more jobs of a queue as running, whose limits lock_limits returned.
CREATE FUNCTION {{schema}}.count_running(l {{schema}}.queue_limits, n integer) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
    IF coalesce(l.max_running, l.max_running_per_key) IS NOT NULL THEN
        UPDATE {{schema}}.queue_limits q SET running = l.running + count_running.n
        WHERE q.queue = l.queue AND q.running <> l.running + count_running.n;
    END IF;
END
$$;

-- How many jobs of a queue with these limits run.
CREATE FUNCTION {{schema}}.running_in(l {{schema}}.queue_limits) RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
    RETURN l.running - coalesce((SELECT sum(e.n) FROM {{schema}}.ends e WHERE e.queue = l.queue), 0);
END
$$;

-- Counts what runs in a queue, while no claim does.
CREATE FUNCTION {{schema}}.count_anew(queue text) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
    -- In one statement: what has ended is in none of the two, what has not is in both.
    WITH ended AS (DELETE FROM {{schema}}.ends e WHERE e.queue = count_anew.queue)
    UPDATE {{schema}}.queue_limits q SET running = (
        SELECT count(*) FROM {{schema}}.jobs j WHERE j.queue = count_anew.queue AND j.lane IS NOT NULL AND j.counted)
    WHERE q.queue = count_anew.queue;
END
$$;

-- Jobs are not deleted while they run, but by hand.
CREATE FUNCTION {{schema}}.note_deletion() RETURNS trigger
LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        DELETE FROM {{schema}}.ends;
        UPDATE {{schema}}.queue_limits SET running = 0 WHERE running <> 0;
    ELSE
        PERFORM {{schema}}.note_ends(ARRAY[OLD.queue::text]);
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER jobs_deleted_while_counted AFTER DELETE ON {{schema}}.jobs FOR EACH ROW WHEN (OLD.counted) EXECUTE FUNCTION {{schema}}.note_deletion();
CREATE TRIGGER jobs_truncated AFTER TRUNCATE ON {{schema}}.jobs FOR EACH STATEMENT EXECUTE FUNCTION {{schema}}.note_deletion();
