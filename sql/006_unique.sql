-- Unique jobs: creating one again returns the job that is there.

-- Who holds which key. A table of its own, so that jobs without a key pay
-- nothing. It is the job that counts, not the row: a key whose job is gone is free.
CREATE TABLE {{schema}}.unique_keys (
    name     text COLLATE "C", -- of the job; '' for Idempotency-Keys, which are of requests, for jobs of any name
    key      text COLLATE "C",
    job_id   uuid,             -- the job that was created with it last
    retried_id uuid,           -- an older one that was retried since, which has it until it is finished
    request  text,             -- of an Idempotency-Key: the digest of the request,
    asked_at timestamptz,      -- and when that came
    CONSTRAINT unique_keys_pkey PRIMARY KEY (name, key)
) WITH (
    fillfactor = 80, -- taking a key over changes no column of the index
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 1000
);

-- Locks keys until the end of the transaction, those nobody has had too: they
-- get a row. Always in the same order, so that two batches can't wait for each
-- other. WHERE false: a row that is there is locked, and not written.
CREATE FUNCTION {{schema}}.lock_keys(names text[], keys text[]) RETURNS void
LANGUAGE sql VOLATILE SET search_path = '' AS $$
    INSERT INTO {{schema}}.unique_keys AS k (name, key)
    SELECT n.name, n.key FROM (
        SELECT DISTINCT u.name COLLATE "C", u.key COLLATE "C" FROM unnest(lock_keys.names, lock_keys.keys) AS u (name, key)
        WHERE u.key IS NOT NULL
    ) AS n (name, key) ORDER BY n.name, n.key
    ON CONFLICT ON CONSTRAINT unique_keys_pkey DO UPDATE SET job_id = k.job_id WHERE false
$$;

-- Creates jobs of which some have a key, one after another. One whose key is
-- held (by an unfinished job, or one created no longer than for_us ago) is not
-- created: the holder is returned in its place, and if the new one replaces it
-- and it has used no attempt, it gets the new payload, run_at and attributes.
--
-- Creations with the same key are kept apart by the key's row. Each statement
-- of this function sees what was committed before the statement began: the
-- holder is read only when the row is locked, so it is there to be seen if
-- somebody has just created it. In one statement, both would look at the state
-- before the lock.
--
-- idempotency_key, with the digest of its request, is for one job: within a day
-- of the first request, the job that this was answered with is returned, and in
-- asked the digest of the first request.
CREATE FUNCTION {{schema}}.create_unique(
    ids uuid[], names text[], queues text[], payloads text[], run_ats timestamptz[], max_attempts integer[], timeouts_ms bigint[],
    attributes text[], priorities integer[], job_keys text[], keys text[], fors_us bigint[], replaces boolean[], bounded boolean,
    idempotency_key text DEFAULT NULL, digest text DEFAULT NULL
) RETURNS TABLE (job {{schema}}.jobs, duplicate boolean, changed boolean, asked text)
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
    SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    v_new record;
    v_due text[] := '{}';
    v_bounded text[]; -- queues with a bound
    v_rooms bigint[]; -- and how many may be created in each
    v_bound integer;
BEGIN
    IF create_unique.priorities IS NOT NULL THEN
        PERFORM {{schema}}.prioritize(ARRAY(
            SELECT n.queue FROM unnest(create_unique.queues, create_unique.priorities) AS n (queue, priority) WHERE n.priority <> 0));
    END IF;
    PERFORM {{schema}}.lock_keys(array_append(create_unique.names, ''), array_append(create_unique.keys, create_unique.idempotency_key));
    IF create_unique.idempotency_key IS NOT NULL THEN
        SELECT k.request INTO asked FROM {{schema}}.unique_keys k
        WHERE k.name = '' AND k.key = create_unique.idempotency_key AND k.asked_at > now() - interval '24 hours';
        SELECT j.* INTO job FROM {{schema}}.unique_keys k JOIN {{schema}}.jobs j ON j.id = k.job_id
        WHERE k.name = '' AND k.key = create_unique.idempotency_key AND asked IS NOT NULL;
        IF FOUND THEN
            duplicate := true;
            changed := false;
            RETURN NEXT;
            RETURN;
        END IF;
    END IF;

    asked := create_unique.digest;
    FOR v_new IN
        SELECT n.* FROM unnest(create_unique.ids, create_unique.names, create_unique.queues, create_unique.payloads, create_unique.run_ats,
                create_unique.max_attempts, create_unique.timeouts_ms, create_unique.attributes, create_unique.priorities,
                create_unique.job_keys, create_unique.keys, create_unique.fors_us, create_unique.replaces) WITH ORDINALITY
            AS n (id, name, queue, payload, run_at, max_attempts, timeout_ms, attributes, priority, job_key, key, for_us, replaces, place)
        ORDER BY n.place
    LOOP
        LOOP
            SELECT j.* INTO job FROM {{schema}}.unique_keys k JOIN {{schema}}.jobs j ON j.id = ANY (ARRAY[k.job_id, k.retried_id])
            WHERE k.name = v_new.name AND k.key = v_new.key AND (j.finished_at IS NULL
                OR j.id = k.job_id AND j.created_at > now() - v_new.for_us * interval '1 microsecond')
            ORDER BY j.finished_at IS NOT NULL LIMIT 1;
            duplicate := FOUND;
            changed := NOT duplicate OR v_new.replaces AND job.status = 'pending' AND job.attempt = 0;
            EXIT WHEN NOT changed;
            IF duplicate THEN
                UPDATE {{schema}}.jobs j
                SET payload = v_new.payload::jsonb, run_at = coalesce(v_new.run_at, now()), attributes = v_new.attributes::jsonb
                WHERE j.id = job.id AND j.status = 'pending' AND j.attempt = 0 RETURNING j.* INTO job;
                IF FOUND THEN
                    IF job.claims > 0 THEN -- it was snoozed or handed back: what it reported is about the old payload
                        DELETE FROM {{schema}}.job_progress p WHERE p.job_id = job.id;
                    END IF;
                    EXIT;
                END IF; -- else it has just been started, or is gone: look again
            ELSE
                IF create_unique.bounded THEN
                    IF v_bounded IS NULL THEN
                        SELECT coalesce(array_agg(r.queue), '{}'), array_agg(r.room) INTO v_bounded, v_rooms FROM {{schema}}.room_to_create(create_unique.queues) AS r;
                    END IF;
                    v_bound := array_position(v_bounded, v_new.queue);
                    IF v_rooms[v_bound] = 0 THEN
                        PERFORM {{schema}}.refuse_full(v_new.queue);
                    END IF;
                    IF v_bound IS NOT NULL THEN
                        v_rooms[v_bound] := v_rooms[v_bound] - 1;
                    END IF;
                END IF;
                INSERT INTO {{schema}}.jobs (id, name, queue, payload, run_at, max_attempts, timeout_ms, attributes, priority, lane, key)
                VALUES (v_new.id, v_new.name, v_new.queue, v_new.payload::jsonb, coalesce(v_new.run_at, now()), v_new.max_attempts,
                    v_new.timeout_ms, v_new.attributes::jsonb, coalesce(v_new.priority, 0), 3 * coalesce(v_new.priority, 0), v_new.job_key)
                RETURNING * INTO job;
                UPDATE {{schema}}.unique_keys k SET job_id = job.id, retried_id = NULL WHERE k.name = v_new.name AND k.key = v_new.key;
                EXIT;
            END IF;
        END LOOP;
        IF changed AND job.run_at <= now() AND job.queue::text <> ALL (v_due) THEN
            v_due := array_append(v_due, job.queue::text);
        END IF;
        RETURN NEXT;
    END LOOP;

    IF create_unique.idempotency_key IS NOT NULL THEN
        UPDATE {{schema}}.unique_keys k SET job_id = job.id, request = create_unique.digest, asked_at = now()
        WHERE k.name = '' AND k.key = create_unique.idempotency_key;
    END IF;
    PERFORM {{schema}}.wake_workers(q.name) FROM unnest(v_due) AS q (name)
    WHERE EXISTS (SELECT FROM {{schema}}.queue_workers w WHERE w.wake AND w.queue = q.name);
END
$$;

-- What create_job does for a job with a unique key, or with what only such a job
-- may have, in a queue with a bound, and for one that is to run after others.
CREATE FUNCTION {{schema}}.create_job_apart(
    id uuid, name text, run_at timestamptz, payload jsonb, queue text, max_attempts integer, attributes jsonb,
    priority integer, key text, unique_key text, unique_for interval, after uuid[], after_any boolean
) RETURNS uuid
LANGUAGE plpgsql VOLATILE SET search_path = '' AS $$
DECLARE
    v_after   uuid[] := ARRAY(SELECT DISTINCT a.id FROM unnest(create_job_apart.after) AS a (id));
    v_id      uuid;
    v_queue   text;
    v_run_at  timestamptz;
    v_changed boolean;
BEGIN
    IF octet_length(create_job_apart.unique_key) > 256 THEN
        RAISE EXCEPTION 'create_job: unique_key has % bytes: expected at most 256', octet_length(create_job_apart.unique_key)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF create_job_apart.unique_for < '0' OR create_job_apart.unique_for > '8784 hours' THEN
        RAISE EXCEPTION 'create_job: unique_for %: expected 0 to 366 days', create_job_apart.unique_for USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF create_job_apart.unique_key IS NULL AND create_job_apart.unique_for <> '0' THEN
        RAISE EXCEPTION 'create_job: unique_for % without a unique_key: expected both', create_job_apart.unique_for
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF cardinality(v_after) > 10000 THEN
        RAISE EXCEPTION 'create_job: after has % jobs: expected at most 10000', cardinality(v_after) USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF array_position(v_after, NULL) IS NOT NULL THEN
        RAISE EXCEPTION 'create_job: after has a NULL: expected ids of jobs' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT (u.job).id, (u.job).queue, (u.job).run_at, u.changed INTO v_id, v_queue, v_run_at, v_changed
    FROM {{schema}}.create_after(ARRAY[create_job_apart.id], ARRAY[create_job_apart.name], ARRAY[create_job_apart.queue],
        ARRAY[create_job_apart.payload::text], ARRAY[create_job_apart.run_at], ARRAY[create_job_apart.max_attempts], ARRAY[NULL::bigint],
        ARRAY[CASE WHEN create_job_apart.unique_key IS NULL THEN create_job_apart.attributes
            ELSE coalesce(create_job_apart.attributes, '{}') || jsonb_build_object('unique_key', create_job_apart.unique_key) END::text],
        ARRAY[nullif(create_job_apart.priority, 0)], ARRAY[create_job_apart.key], ARRAY[create_job_apart.unique_key],
        ARRAY[(extract(epoch FROM create_job_apart.unique_for) * 1000000)::bigint], ARRAY[false], true,
        NULL, NULL, array_fill(create_job_apart.id, ARRAY[cardinality(v_after)]), v_after,
        array_fill(coalesce(create_job_apart.after_any, false), ARRAY[cardinality(v_after)])) AS u;
    IF v_changed THEN
        PERFORM {{schema}}.notify_created(v_queue, v_run_at);
    END IF;
    RETURN v_id;
END
$$;

-- Deletes keys that hold nobody up any more: their job is gone, or finished and
-- older than any creation can ask for; Idempotency-Keys after a day. A call of
-- clean_up looks at so many of them, and the next one goes on behind those.
--
-- What is free stays so until somebody takes it over, which is looked at again
-- with the row locked. Rows that somebody has locked are about to be taken.
CREATE FUNCTION {{schema}}.clean_up_keys(look integer) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = '' SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off
    SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    v_state {{schema}}.clean_up_state%ROWTYPE;
    v_name  text;
    v_key   text;
    v_free  {{schema}}.unique_keys[];
BEGIN
    SELECT * INTO v_state FROM {{schema}}.clean_up_state;
    v_free := ARRAY(
        SELECT k::{{schema}}.unique_keys FROM (
            SELECT * FROM {{schema}}.unique_keys u WHERE (u.name, u.key) > (v_state.last_name, v_state.last_key)
            ORDER BY u.name, u.key LIMIT clean_up_keys.look) AS k
        LEFT JOIN {{schema}}.jobs j ON j.id = k.job_id
        WHERE (j.id IS NULL OR k.asked_at <= now() - interval '24 hours'
                OR k.asked_at IS NULL AND j.finished_at IS NOT NULL AND j.created_at <= now() - interval '8784 hours')
            AND NOT EXISTS (SELECT FROM {{schema}}.jobs r WHERE r.id = k.retried_id AND r.finished_at IS NULL));
    SELECT u.name, u.key INTO v_name, v_key FROM {{schema}}.unique_keys u WHERE (u.name, u.key) > (v_state.last_name, v_state.last_key)
    ORDER BY u.name, u.key OFFSET clean_up_keys.look - 1 LIMIT 1;
    IF cardinality(v_free) > 0 THEN
        DELETE FROM {{schema}}.unique_keys d USING (
            SELECT k.name, k.key FROM unnest(v_free) AS f
            JOIN {{schema}}.unique_keys k ON k.name = f.name AND k.key = f.key
                AND (k.job_id, k.retried_id, k.asked_at) IS NOT DISTINCT FROM (f.job_id, f.retried_id, f.asked_at)
            FOR UPDATE OF k SKIP LOCKED) AS free
        WHERE d.name = free.name AND d.key = free.key;
    END IF;
    UPDATE {{schema}}.clean_up_state AS s SET last_name = coalesce(v_name, ''), last_key = coalesce(v_key, '')
    WHERE (s.last_name, s.last_key) <> (coalesce(v_name, ''), coalesce(v_key, ''));
END
$$;
