-- Jobs that run after others: what a job waits for, and what becomes of it when
-- that has finished.
--
-- A job that waits is pending in lane 303, where neither claims nor next_due look.
-- Its waits_for says how many jobs have to finish before it gets a lane of its
-- own. Those, its parents, have awaited set: by that finish knows, of a row that
-- it writes anyway, that there is something to look for.
--
-- Everything that finishes a job calls release_dependants in its transaction, with
-- the job's row locked. Creating a dependant locks and writes the rows of its
-- parents before it reads what has come of them. So of the two, one sees what the
-- other has done: a dependant neither gets lost nor waits for ever.
--
-- Locks go from parents to children: first the rows of jobs that run, or that are
-- called off, then those of jobs that wait, these in one go and in the order of
-- their ids, then their dependencies. As ids of children are higher than those of
-- their parents, nobody who waits here has what another one wants. What does that
-- for many jobs at once passes over those that it can't lock (see lock_dependants).

CREATE TABLE {{schema}}.job_dependencies (
    child     uuid,
    parent    uuid,
    after_any boolean NOT NULL, -- the child runs whatever comes of the parent
    outcome   text,             -- what came of the parent; NULL: the child waits for it, or did when it was called off
    CONSTRAINT job_dependencies_pkey PRIMARY KEY (child, parent),
    CONSTRAINT job_dependencies_outcome_known CHECK (outcome IN ('succeeded', 'dead', 'cancelled', 'deleted'))
) WITH (
    fillfactor = 70, -- an outcome changes no column of an index
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 1000
);
CREATE INDEX job_dependencies_parent ON {{schema}}.job_dependencies (parent, child);

-- The jobs that have these among their ancestors, and wait, and whose wait can't
-- end well when these don't succeed.
CREATE FUNCTION {{schema}}.doomed_by(ids uuid[]) RETURNS uuid[]
LANGUAGE plpgsql STABLE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off
    SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    RETURN ARRAY(
        WITH RECURSIVE doomed (id) AS (
            SELECT d.child FROM unnest(doomed_by.ids) AS p (id)
            JOIN {{schema}}.job_dependencies d ON d.parent = p.id AND d.outcome IS NULL AND NOT d.after_any
            JOIN {{schema}}.jobs c ON c.id = d.child AND (c.lane = 303) IS TRUE
            UNION
            SELECT d.child FROM doomed p
            JOIN {{schema}}.job_dependencies d ON d.parent = p.id AND d.outcome IS NULL AND NOT d.after_any
            JOIN {{schema}}.jobs c ON c.id = d.child AND (c.lane = 303) IS TRUE)
        SELECT w.id FROM doomed w);
END
$$;

-- The jobs that wait for one of these.
CREATE FUNCTION {{schema}}.waiting_for(ids uuid[]) RETURNS uuid[]
LANGUAGE plpgsql STABLE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off
    SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    RETURN ARRAY(
        SELECT DISTINCT d.child FROM unnest(waiting_for.ids) AS p (id)
        JOIN {{schema}}.job_dependencies d ON d.parent = p.id AND d.outcome IS NULL
        JOIN {{schema}}.jobs c ON c.id = d.child AND (c.lane = 303) IS TRUE);
END
$$;

-- Tells those who wait for jobs that this transaction has finished or deleted. Where
-- nothing is left to wait for, a job gets the lane that others have from their
-- creation on; it is due now, if it was not to be later. Where a parent has not
-- succeeded, it is cancelled, and with it those that wait for it, unless they are
-- to run whatever comes.
--
-- All of it is done for all jobs at once: ten thousand that finish together before
-- one count it down once.
CREATE FUNCTION {{schema}}.release_dependants(ids uuid[]) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off
    SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    v_bad    uuid[]; -- those of ids that have not succeeded
    v_doomed uuid[] := '{}';
    v_found  uuid[];
    v_locked uuid[] := '{}';
    v_queue  record;
BEGIN
    IF release_dependants.ids = '{}' THEN
        RETURN;
    END IF;
    v_bad := ARRAY(
        SELECT p.id FROM unnest(release_dependants.ids) AS p (id) LEFT JOIN {{schema}}.jobs j ON j.id = p.id
        WHERE j.status IS DISTINCT FROM 'succeeded');
    -- A job that waits may get dependants of its own until it is locked.
    LOOP
        IF v_bad <> '{}' THEN
            v_doomed := {{schema}}.doomed_by(v_bad);
        END IF;
        v_found := {{schema}}.waiting_for(release_dependants.ids || v_doomed);
        EXIT WHEN cardinality(v_found) = cardinality(v_locked);
        v_locked := ARRAY(
            SELECT j.id FROM {{schema}}.jobs j WHERE j.id = ANY (v_found) AND (j.lane = 303) IS TRUE ORDER BY j.id FOR NO KEY UPDATE);
        EXIT WHEN v_bad = '{}';
    END LOOP;
    IF v_locked = '{}' THEN
        RETURN;
    END IF;

    FOR v_queue IN
        WITH told AS (
            -- What is not finished among the parents is what this cancels.
            UPDATE {{schema}}.job_dependencies d
            SET outcome = CASE WHEN p.id IS NULL THEN 'deleted' WHEN p.finished_at IS NULL THEN 'cancelled' ELSE p.status END
            FROM unnest(release_dependants.ids || v_doomed) AS r (id) LEFT JOIN {{schema}}.jobs p ON p.id = r.id, {{schema}}.jobs c
            WHERE d.parent = r.id AND d.outcome IS NULL AND c.id = d.child AND (c.lane = 303) IS TRUE
            RETURNING d.child, d.parent, d.outcome, d.after_any
        ), children AS (
            SELECT t.child, count(*) AS n, min(format('job cancelled: it was to run after job %s, which %s', t.parent,
                    CASE t.outcome WHEN 'dead' THEN 'is dead' ELSE 'was ' || t.outcome END))
                FILTER (WHERE t.outcome <> 'succeeded' AND NOT t.after_any) AS reason
            FROM told t GROUP BY t.child
        ), changed AS (
            UPDATE {{schema}}.jobs c
            SET status = CASE WHEN w.reason IS NULL THEN 'pending' ELSE 'cancelled' END,
                finished_at = CASE WHEN w.reason IS NOT NULL THEN now() END,
                errors = CASE WHEN w.reason IS NULL THEN c.errors ELSE {{schema}}.with_error(c.errors, c.attempt, w.reason) END,
                lane = CASE WHEN w.reason IS NOT NULL THEN NULL WHEN c.waits_for > w.n THEN 303 ELSE 3 * c.priority END,
                run_at = CASE WHEN w.reason IS NULL AND c.waits_for = w.n THEN greatest(c.run_at, now()) ELSE c.run_at END,
                waits_for = CASE WHEN w.reason IS NULL THEN c.waits_for - w.n ELSE c.waits_for END
            FROM children w WHERE c.id = w.child
            RETURNING c.queue, c.run_at, c.lane
        )
        SELECT c.queue AS name, min(c.run_at) AS run_at FROM changed c WHERE c.lane < 303 GROUP BY c.queue
    LOOP
        -- As in tell_dead, that nobody can be told is no reason not to finish.
        IF pg_notification_queue_usage() < 0.9 THEN
            PERFORM {{schema}}.announce(v_queue.name, v_queue.run_at);
        END IF;
    END LOOP;
END
$$;

-- Locks those who wait for the ones of these jobs that are to be ended, and are
-- locked themselves, so that release_dependants waits for nobody. Returns the jobs
-- without those that a job waits for which somebody else has locked.
CREATE FUNCTION {{schema}}.lock_dependants(ids uuid[], ended uuid[]) RETURNS uuid[]
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off
    SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    v_awaited uuid[] := '{}';
    v_found   uuid[];
    v_locked  uuid[] := '{}';
    v_busy    uuid[] := '{}';
BEGIN
    IF lock_dependants.ended <> '{}' THEN
        v_awaited := ARRAY(SELECT j.id FROM {{schema}}.jobs j WHERE j.id = ANY (lock_dependants.ended) AND j.awaited);
    END IF;
    IF v_awaited = '{}' THEN
        RETURN lock_dependants.ids;
    END IF;
    LOOP
        v_found := {{schema}}.waiting_for(v_awaited || {{schema}}.doomed_by(v_awaited));
        EXIT WHEN cardinality(v_found) = cardinality(v_locked) OR v_busy <> '{}';
        v_locked := ARRAY(
            SELECT j.id FROM {{schema}}.jobs j WHERE j.id = ANY (v_found) AND (j.lane = 303) IS TRUE ORDER BY j.id FOR NO KEY UPDATE SKIP LOCKED);
        v_busy := ARRAY(SELECT unnest(v_found) EXCEPT SELECT unnest(v_locked));
    END LOOP;
    IF v_busy = '{}' THEN
        RETURN lock_dependants.ids;
    END IF;
    RETURN ARRAY(
        WITH RECURSIVE above (id) AS (
            SELECT unnest(v_busy)
            UNION
            SELECT d.parent FROM above a JOIN {{schema}}.job_dependencies d ON d.child = a.id AND d.outcome IS NULL)
        SELECT i.id FROM unnest(lock_dependants.ids) AS i (id) EXCEPT SELECT a.id FROM above a);
END
$$;

-- Creates jobs as create_unique does, of which some are to run after others: each
-- of children after each of parents, which may be among ids themselves, and
-- whatever comes of that if anys says so. What changed says is false of those that
-- nobody is to be told of yet, because they wait.
--
-- A job after one that is dead or cancelled already is cancelled at once, as it
-- would be if that had happened later.
CREATE FUNCTION {{schema}}.create_after(
    ids uuid[], names text[], queues text[], payloads text[], run_ats timestamptz[], max_attempts integer[], timeouts_ms bigint[],
    attributes text[], priorities integer[], job_keys text[], keys text[], fors_us bigint[], replaces boolean[], bounded boolean,
    idempotency_key text, digest text, children uuid[], parents uuid[], anys boolean[]
) RETURNS TABLE (job {{schema}}.jobs, duplicate boolean, changed boolean, asked text)
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
    SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    v_apart      boolean := create_after.bounded OR create_after.idempotency_key IS NOT NULL
        OR EXISTS (SELECT FROM unnest(create_after.keys) AS k (key) WHERE k.key IS NOT NULL);
    v_ids        uuid[] := create_after.ids;
    v_duplicates boolean[];
    v_changes    boolean[];
    v_asked      text;
    v_due        text[] := '{}'; -- queues with jobs that are due and nobody has told of yet
BEGIN
    IF create_after.children = '{}' THEN
        RETURN QUERY
            SELECT u.job, u.duplicate, u.changed, u.asked
            FROM {{schema}}.create_unique(create_after.ids, create_after.names, create_after.queues, create_after.payloads, create_after.run_ats,
                create_after.max_attempts, create_after.timeouts_ms, create_after.attributes, create_after.priorities, create_after.job_keys,
                create_after.keys, create_after.fors_us, create_after.replaces, create_after.bounded, create_after.idempotency_key, create_after.digest) AS u;
        RETURN;
    END IF;
    IF v_apart THEN
        SELECT array_agg((u.job).id ORDER BY u.place), array_agg(u.duplicate ORDER BY u.place), array_agg(u.changed ORDER BY u.place), min(u.asked)
        INTO v_ids, v_duplicates, v_changes, v_asked
        FROM {{schema}}.create_unique(create_after.ids, create_after.names, create_after.queues, create_after.payloads, create_after.run_ats,
                create_after.max_attempts, create_after.timeouts_ms, create_after.attributes, create_after.priorities, create_after.job_keys,
                create_after.keys, create_after.fors_us, create_after.replaces, create_after.bounded, create_after.idempotency_key, create_after.digest)
            WITH ORDINALITY AS u (job, duplicate, changed, asked, place);
    ELSIF create_after.priorities IS NOT NULL THEN
        PERFORM {{schema}}.prioritize(ARRAY(
            SELECT n.queue FROM unnest(create_after.queues, create_after.priorities) AS n (queue, priority) WHERE n.priority <> 0));
    END IF;
    IF false = ANY (v_duplicates) IS NOT FALSE THEN
        PERFORM {{schema}}.depend(create_after.ids, create_after.children, create_after.parents, create_after.anys, v_apart);
    END IF;
    IF v_apart THEN
        UPDATE {{schema}}.jobs j
        SET waits_for = w.n, lane = CASE WHEN w.n > 0 THEN 303 ELSE j.lane END
        FROM (
            SELECT d.child, count(*) FILTER (WHERE d.outcome IS NULL) AS n FROM (SELECT DISTINCT unnest(create_after.children)) AS c (id)
            JOIN {{schema}}.job_dependencies d ON d.child = c.id GROUP BY d.child) AS w
        WHERE j.id = w.child;
    ELSE
        WITH created AS (
            INSERT INTO {{schema}}.jobs AS j
                (id, name, queue, payload, run_at, max_attempts, timeout_ms, attributes, priority, key, waits_for, lane, awaited)
            SELECT n.id, n.name, n.queue, n.payload::jsonb, coalesce(n.run_at, now()), n.max_attempts, n.timeout_ms, n.attributes::jsonb,
                coalesce(n.priority, 0), n.key, w.n, CASE WHEN w.n > 0 THEN 303 ELSE 3 * coalesce(n.priority, 0) END,
                (SELECT true FROM {{schema}}.job_dependencies d WHERE d.parent = n.id LIMIT 1)
            FROM unnest(create_after.ids, create_after.names, create_after.queues, create_after.payloads, create_after.run_ats,
                    create_after.max_attempts, create_after.timeouts_ms, create_after.attributes, create_after.priorities, create_after.job_keys)
                AS n (id, name, queue, payload, run_at, max_attempts, timeout_ms, attributes, priority, key),
                LATERAL (
                    SELECT CASE WHEN count(*) > 0 THEN count(*) FILTER (WHERE d.outcome IS NULL) END AS n
                    FROM {{schema}}.job_dependencies d WHERE d.child = n.id) AS w
            RETURNING j.queue, j.run_at, j.lane)
        SELECT coalesce(array_agg(DISTINCT c.queue::text) FILTER (WHERE c.lane < 303 AND c.run_at <= now()), '{}') INTO v_due FROM created c;
    END IF;
    -- In the end, as these may be parents of what has just been stored.
    PERFORM {{schema}}.release_dependants(ARRAY(
        SELECT DISTINCT p.id FROM unnest(create_after.parents) AS e (id)
        JOIN {{schema}}.jobs p ON p.id = e.id AND p.status IN ('dead', 'cancelled')));
    PERFORM {{schema}}.wake_workers(q.name) FROM unnest(v_due) AS q (name)
    WHERE EXISTS (SELECT FROM {{schema}}.queue_workers w WHERE w.wake AND w.queue = q.name);
    RETURN QUERY
        SELECT j, coalesce(n.duplicate, false), coalesce(n.changed, true) AND coalesce(j.lane < 303, false), v_asked
        FROM unnest(v_ids, v_duplicates, v_changes) WITH ORDINALITY AS n (id, duplicate, changed, place)
        JOIN {{schema}}.jobs j ON j.id = n.id ORDER BY n.place;
END
$$;

-- Stores what jobs wait for that are just being created: those with these ids. If
-- they are stored already, those that found another one of their key wait for
-- nothing.
--
-- The parents that were there before are locked until the transaction ends, so
-- that none is started or finished meanwhile, and written, so that a transaction
-- with an older snapshot can't finish them without having seen this. Who passed
-- over one that is due has to look again.
CREATE FUNCTION {{schema}}.depend(ids uuid[], children uuid[], parents uuid[], anys boolean[], stored boolean) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off
    SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    v_others uuid[] := ARRAY(SELECT unnest(depend.parents) EXCEPT SELECT unnest(depend.ids));
    v_found  uuid[] := ARRAY(SELECT j.id FROM {{schema}}.jobs j WHERE j.id = ANY (v_others) ORDER BY j.id FOR NO KEY UPDATE);
    v_none   uuid;
    v_queue  text;
BEGIN
    IF cardinality(v_found) < cardinality(v_others) THEN
        SELECT o.id INTO v_none FROM (SELECT unnest(v_others) EXCEPT SELECT unnest(v_found)) AS o (id) ORDER BY o.id LIMIT 1;
        RAISE EXCEPTION 'create_job: after: there is no job %', v_none USING ERRCODE = 'no_data_found', DETAIL = v_none;
    END IF;
    INSERT INTO {{schema}}.job_dependencies (child, parent, after_any, outcome)
        SELECT e.child, e.parent, e.after_any,
            CASE WHEN p.status = 'succeeded' OR e.after_any AND p.finished_at IS NOT NULL THEN p.status END
        FROM unnest(depend.children, depend.parents, depend.anys) AS e (child, parent, after_any)
        LEFT JOIN {{schema}}.jobs p ON p.id = e.parent
        WHERE NOT depend.stored OR EXISTS (SELECT FROM {{schema}}.jobs c WHERE c.id = e.child);
    UPDATE {{schema}}.jobs j SET awaited = true
    WHERE j.id = ANY (CASE WHEN depend.stored THEN depend.parents ELSE v_others END);
    FOR v_queue IN
        SELECT DISTINCT j.queue FROM {{schema}}.jobs j
        WHERE j.id = ANY (v_found) AND j.status IN ('pending', 'failed') AND (j.lane < 303) IS TRUE AND j.run_at <= now()
    LOOP
        PERFORM {{schema}}.announce(v_queue, now());
    END LOOP;
END
$$;

-- The parents because of which jobs that were called off while they waited can't
-- run: they have not succeeded, nor are they to be tried again.
CREATE FUNCTION {{schema}}.broken_off(ids uuid[]) RETURNS TABLE (child uuid, parent uuid)
LANGUAGE plpgsql STABLE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off
    SET enable_hashjoin = off SET enable_mergejoin = off AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        SELECT d.child, d.parent FROM unnest(broken_off.ids) AS c (id)
        JOIN {{schema}}.job_dependencies d ON d.child = c.id AND NOT d.after_any
        LEFT JOIN {{schema}}.jobs p ON p.id = d.parent
        WHERE coalesce(p.status, d.outcome, 'deleted') IN ('dead', 'cancelled', 'deleted');
END
$$;

-- Lets jobs that were called off while they waited, and are to be retried, wait
-- again for those of their parents that are not finished. Returns the jobs, which
-- are locked, without those that can't run; if it is told not to wait for anybody,
-- also without those whose parents somebody else has locked.
CREATE FUNCTION {{schema}}.wait_again(ids uuid[], passing boolean) RETURNS uuid[]
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off
    SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    v_again   uuid[] := ARRAY(
        SELECT j.id FROM {{schema}}.jobs j WHERE j.id = ANY (wait_again.ids) AND j.waits_for > 0 AND j.finished_at IS NOT NULL);
    v_parents uuid[];
    v_locked  uuid[];
    v_refused uuid[];
BEGIN
    IF v_again = '{}' THEN
        RETURN wait_again.ids;
    END IF;
    v_parents := ARRAY(
        SELECT DISTINCT p.id FROM unnest(v_again) AS c (id)
        JOIN {{schema}}.job_dependencies d ON d.child = c.id JOIN {{schema}}.jobs p ON p.id = d.parent);
    IF wait_again.passing THEN
        v_locked := ARRAY(SELECT j.id FROM {{schema}}.jobs j WHERE j.id = ANY (v_parents) ORDER BY j.id FOR NO KEY UPDATE SKIP LOCKED);
    ELSE
        v_locked := ARRAY(SELECT j.id FROM {{schema}}.jobs j WHERE j.id = ANY (v_parents) ORDER BY j.id FOR NO KEY UPDATE);
    END IF;
    v_refused := ARRAY(
        SELECT b.child FROM {{schema}}.broken_off(v_again) AS b
        UNION
        SELECT d.child FROM (SELECT unnest(v_parents) EXCEPT SELECT unnest(v_locked)) AS busy (id)
        JOIN {{schema}}.job_dependencies d ON d.parent = busy.id);
    v_again := ARRAY(SELECT unnest(v_again) EXCEPT SELECT unnest(v_refused));

    UPDATE {{schema}}.job_dependencies d
    SET outcome = CASE WHEN p.id IS NULL THEN coalesce(d.outcome, 'deleted') WHEN p.finished_at IS NOT NULL THEN p.status END
    FROM unnest(v_again) AS c (id) JOIN {{schema}}.job_dependencies o ON o.child = c.id LEFT JOIN {{schema}}.jobs p ON p.id = o.parent
    WHERE d.child = o.child AND d.parent = o.parent;
    UPDATE {{schema}}.jobs j
    SET waits_for = (SELECT count(*) FROM {{schema}}.job_dependencies d WHERE d.child = j.id AND d.outcome IS NULL)
    WHERE j.id = ANY (v_again);
    UPDATE {{schema}}.jobs j SET awaited = true WHERE j.id = ANY (v_locked);
    RETURN ARRAY(SELECT unnest(wait_again.ids) EXCEPT SELECT unnest(v_refused));
END
$$;

-- The first n of a job's parents whose ids are behind this one.
CREATE FUNCTION {{schema}}.parents_of(child uuid, behind uuid, n integer) RETURNS SETOF {{schema}}.jobs
LANGUAGE plpgsql STABLE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off
    SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    RETURN QUERY
        SELECT j.* FROM {{schema}}.job_dependencies d JOIN {{schema}}.jobs j ON j.id = d.parent
        WHERE d.child = parents_of.child AND d.parent > parents_of.behind ORDER BY d.parent LIMIT parents_of.n;
END
$$;

-- Whether a job that is not finished was created after this one, whose result it
-- may read.
CREATE FUNCTION {{schema}}.is_read(id uuid) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off
    SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    RETURN EXISTS (
        SELECT FROM {{schema}}.job_dependencies d JOIN {{schema}}.jobs c ON c.id = d.child AND c.finished_at IS NULL WHERE d.parent = is_read.id);
END
$$;

-- Deletes the dependencies of jobs that are gone. A call of clean_up looks at so
-- many, and the next one goes on behind those.
CREATE FUNCTION {{schema}}.clean_up_dependencies(look integer) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off
    SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    c_first CONSTANT uuid := '00000000-0000-0000-0000-000000000000';
    v_state {{schema}}.clean_up_state%ROWTYPE;
    v_last  {{schema}}.job_dependencies%ROWTYPE;
BEGIN
    SELECT * INTO v_state FROM {{schema}}.clean_up_state;
    SELECT * INTO v_last FROM {{schema}}.job_dependencies d WHERE (d.child, d.parent) > (v_state.last_child, v_state.last_parent)
    ORDER BY d.child, d.parent OFFSET clean_up_dependencies.look - 1 LIMIT 1;
    DELETE FROM {{schema}}.job_dependencies d
    WHERE (d.child, d.parent) > (v_state.last_child, v_state.last_parent)
        AND (v_last.child IS NULL OR (d.child, d.parent) <= (v_last.child, v_last.parent))
        AND NOT EXISTS (SELECT FROM {{schema}}.jobs j WHERE j.id = d.child);
    UPDATE {{schema}}.clean_up_state AS s SET last_child = coalesce(v_last.child, c_first), last_parent = coalesce(v_last.parent, c_first)
    WHERE (s.last_child, s.last_parent) <> (coalesce(v_last.child, c_first), coalesce(v_last.parent, c_first));
END
$$;
