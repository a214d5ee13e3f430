-- Queues whose jobs have priorities. What there is of them elsewhere: the lanes of
-- the index jobs_live, three for each priority, and claim, which comes here.

-- Notes that these queues get jobs of a priority other than 0: from then on,
-- claims look for those. It is part of the transaction that creates the first
-- such job; a queue's row that has the note is not locked again. The order keeps
-- two creations, or one and Migrate, from waiting for each other. Whether all
-- queues are paused stays so until the commit, as one that is added here must be too.
CREATE FUNCTION {{schema}}.prioritize(queues text[]) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = '' AS $$
DECLARE
    v_queues text[] := ARRAY(
        SELECT DISTINCT n.name COLLATE "C" FROM unnest(prioritize.queues) AS n (name)
        WHERE NOT EXISTS (SELECT FROM {{schema}}.queues p WHERE p.name = n.name AND p.prioritized) ORDER BY 1);
    v_paused boolean;
BEGIN
    IF v_queues = '{}' THEN
        RETURN;
    END IF;
    SELECT a.paused INTO v_paused FROM {{schema}}.all_queues a FOR SHARE;
    INSERT INTO {{schema}}.queues AS q (name, prioritized, paused)
        SELECT n.name, true, v_paused FROM unnest(v_queues) WITH ORDINALITY AS n (name, place) ORDER BY n.place
    ON CONFLICT ON CONSTRAINT queues_pkey DO UPDATE SET prioritized = true WHERE NOT q.prioritized;
END
$$;

-- The part of claim for a queue whose jobs have priorities: those of lower ones
-- first, and of one priority the oldest. Before them goes what is overdue, the
-- oldest first whatever its priority, so that nothing starves.
--
-- The n oldest of what is overdue are looked up without a lock. Others may have
-- them by the time they are claimed; then the rest of what is overdue follows.
-- As the last of the n many may be as old, of which the lower priorities are
-- taken, those that are older are claimed before.
CREATE FUNCTION {{schema}}.claim_by_priority(
    queue text, pending boolean, failed boolean, names text[], lease uuid, n integer, overdue interval) RETURNS SETOF {{schema}}.jobs
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
DECLARE
    v_priorities integer[] := {{schema}}.priorities(claim_by_priority.queue);
    v_priority   integer;
    v_oldest     timestamptz; -- until when the n oldest of what is overdue are due; NULL: nothing is
    v_until      timestamptz;
    v_left       integer := claim_by_priority.n;
    v_claimed    integer;
BEGIN
    SELECT max(oldest.run_at) INTO v_oldest FROM (
        SELECT j.run_at FROM unnest(v_priorities) AS p (priority),
            (VALUES (0, claim_by_priority.pending), (1, claim_by_priority.failed)) AS k (lane, wanted),
            LATERAL (
                SELECT j.run_at FROM {{schema}}.jobs j
                WHERE j.queue = claim_by_priority.queue AND j.lane = 3 * p.priority + k.lane AND j.status <> 'running'
                    AND j.run_at < now() - claim_by_priority.overdue AND j.name = ANY (claim_by_priority.names)
                ORDER BY j.run_at LIMIT claim_by_priority.n) AS j
        WHERE k.wanted ORDER BY j.run_at LIMIT claim_by_priority.n) AS oldest;
    FOREACH v_until IN ARRAY CASE WHEN v_oldest IS NULL THEN ARRAY[now()]
        ELSE ARRAY[v_oldest - interval '1 microsecond', v_oldest, now() - claim_by_priority.overdue, now()] END
    LOOP
        FOREACH v_priority IN ARRAY v_priorities LOOP
            RETURN QUERY
                WITH pending AS MATERIALIZED (
                    SELECT j.ctid AS row, j.run_at, j.id FROM {{schema}}.jobs j
                    WHERE j.queue = claim_by_priority.queue AND j.lane = 3 * v_priority AND j.status <> 'running' AND j.run_at <= v_until
                        AND j.name = ANY (claim_by_priority.names) AND claim_by_priority.pending
                    ORDER BY j.run_at, j.id LIMIT v_left FOR UPDATE SKIP LOCKED
                ), failed AS MATERIALIZED (
                    SELECT j.ctid AS row, j.run_at, j.id FROM {{schema}}.jobs j
                    WHERE j.queue = claim_by_priority.queue AND j.lane = 3 * v_priority + 1 AND j.status <> 'running' AND j.run_at <= v_until
                        AND j.name = ANY (claim_by_priority.names) AND claim_by_priority.failed
                    ORDER BY j.run_at, j.id LIMIT v_left FOR UPDATE SKIP LOCKED
                )
                UPDATE {{schema}}.jobs j
                SET status = 'running', lease_id = claim_by_priority.lease, started_at = now(), attempt = j.attempt + 1, claims = j.claims + 1
                WHERE j.ctid = ANY (ARRAY(
                    SELECT due.row FROM (SELECT * FROM pending UNION ALL SELECT * FROM failed) AS due
                    ORDER BY due.run_at, due.id LIMIT v_left))
                RETURNING j.*;
            GET DIAGNOSTICS v_claimed = ROW_COUNT;
            v_left := v_left - v_claimed;
            IF v_left = 0 THEN
                RETURN;
            END IF;
        END LOOP;
    END LOOP;
END
$$;

-- The priorities that live jobs of a queue have, lowest first. Each costs one
-- look into the index, however many jobs have it.
CREATE FUNCTION {{schema}}.priorities(queue text) RETURNS integer[]
LANGUAGE plpgsql STABLE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    v_found integer[] := '{}';
    v_next  integer := -100;
BEGIN
    LOOP
        SELECT (j.lane + 300) / 3 - 100 INTO v_next FROM {{schema}}.jobs j
        WHERE j.queue = priorities.queue AND j.lane >= 3 * v_next AND j.lane < 303 ORDER BY j.lane LIMIT 1;
        IF NOT FOUND THEN
            RETURN v_found;
        END IF;
        v_found := v_found || v_next;
        v_next := v_next + 1;
    END LOOP;
END
$$;

-- Due jobs of other names than these, one of each queue, looked for among the
-- oldest of each priority: those that nobody takes end up there.
CREATE FUNCTION {{schema}}.strangers(queues text[], names text[]) RETURNS TABLE (queue text, name text)
LANGUAGE plpgsql STABLE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
DECLARE
    v_queue    text;
    v_priority integer;
    v_name     text;
BEGIN
    FOREACH v_queue IN ARRAY strangers.queues LOOP
        FOREACH v_priority IN ARRAY {{schema}}.priorities(v_queue) LOOP
            SELECT oldest.name INTO v_name FROM (
                SELECT j.name FROM {{schema}}.jobs j
                WHERE j.queue = v_queue AND j.lane = 3 * v_priority AND j.run_at <= now() ORDER BY j.run_at LIMIT 100) AS oldest
            WHERE NOT oldest.name = ANY (strangers.names) LIMIT 1;
            IF FOUND THEN
                RETURN QUERY SELECT v_queue, v_name;
                EXIT;
            END IF;
        END LOOP;
    END LOOP;
END
$$;
