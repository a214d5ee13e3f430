-- What workers do: their ticks, the requests they make, and what came of them.

-- What pg_cron runs: one HTTP request if a run with the worker's filter would
-- pick something now, none otherwise. Doubled or replayed ticks are harmless:
-- a request is only a hint to look. A slot of a recurring job that has come is
-- left to that run, which would not see what this transaction creates.
CREATE FUNCTION {{schema}}.run_worker(name text) RETURNS text
LANGUAGE plpgsql VOLATILE SET search_path = '' AS $$
DECLARE
    v_worker {{schema}}.queue_workers%ROWTYPE;
BEGIN
    SELECT * INTO v_worker FROM {{schema}}.queue_workers w WHERE w.name = run_worker.name;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'worker % does not exist', {{schema}}.shown(name) USING ERRCODE = 'undefined_object',
            HINT = 'Make it with create_queue_worker, or remove its entry with cron.unschedule.';
    END IF;
    IF ({{schema}}.next_due(v_worker.queue, v_worker.status) <= now()) IS NOT TRUE
        AND NOT (v_worker.status <> 'failed' AND {{schema}}.awaits_firing(v_worker.queue))
    THEN
        PERFORM {{schema}}.fire_recurring_jobs();
        -- Leases that have run out without a job of this queue would be looked at
        -- by every tick. No request follows that could meet the locks this takes.
        PERFORM FROM {{schema}}.rescue();
        RETURN 'nothing due';
    END IF;
    IF v_worker.http_extension = 'http' THEN
        RETURN {{schema}}.call_with_http(v_worker);
    END IF;
    RETURN {{schema}}.call_with_pg_net(v_worker);
END
$$;

-- The beginning of an answer for an error message, without the token: some error
-- pages show the request they are about. pgsql-http takes in any bytes as text;
-- pg_cron would store what can't be read back. Expressions alone, no statements:
-- auto_explain could show those, with the answer.
CREATE FUNCTION {{schema}}.answer_shown(answer text, worker text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
DECLARE
    v_bytes bytea;
BEGIN
    BEGIN
        v_bytes := convert_to(answer, getdatabaseencoding());
    EXCEPTION WHEN character_not_in_repertoire THEN
        RETURN '(no valid text)';
    END;
    RETURN coalesce(left(replace(answer, {{schema}}.worker_token(worker), '…'), 300), '');
END
$$;

-- client_min_messages: pgsql-http writes headers, so the token, to debug messages.
CREATE FUNCTION {{schema}}.call_with_http(worker {{schema}}.queue_workers) RETURNS text
LANGUAGE plpgsql VOLATILE SET search_path = '' SET client_min_messages = 'warning' AS $$
DECLARE
    v_schema   text := {{schema}}.extension_schema('http');
    v_status   integer;
    v_content  text;
    v_location text;
BEGIN
    IF v_schema IS NULL THEN
        RAISE EXCEPTION 'worker %: the extension http (pgsql-http) is gone', quote_literal(worker.name) USING HINT = 'Install it, or call create_queue_worker again.';
    END IF;
    IF current_setting('log_min_messages') ~ '^debug[2-5]$' THEN
        RAISE EXCEPTION 'worker %: with log_min_messages = % pgsql-http would write the token to the server''s log',
            quote_literal(worker.name), current_setting('log_min_messages')
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Set log_min_messages to debug1 or above.';
    END IF;
    -- Every tick is a new session, so they are set every time, and in the one
    -- way that works in all versions. The defaults are 1 s and 5 s. The types are
    -- those of the functions: a better fit could be somebody else's.
    EXECUTE format('SELECT %1$I.http_set_curlopt(''CURLOPT_CONNECTTIMEOUT''::varchar, $1), %1$I.http_set_curlopt(''CURLOPT_TIMEOUT''::varchar, $2)', v_schema)
        USING least(5, worker.timeout_seconds)::varchar, worker.timeout_seconds::varchar;
    -- The function stands in FROM so that it is called once.
    EXECUTE format(
        'SELECT r.status, r.content, (SELECT h.value FROM unnest(r.headers) AS h WHERE lower(h.field) = ''location'' LIMIT 1)
         FROM %1$I.http(ROW(''POST'', $1, ARRAY[ROW(''Authorization'', ''Bearer '' || {{schema}}.worker_token($2))]::%1$I.http_header[],
                            ''application/json'', ''{}'')::%1$I.http_request) AS r', v_schema)
        INTO v_status, v_content, v_location USING worker.endpoint, worker.name;
    -- pgsql-http has followed it already, most kinds of it with a GET.
    IF v_location IS NOT NULL THEN
        RAISE EXCEPTION 'worker %: the endpoint redirects to %, where % was answered: %', quote_literal(worker.name),
            {{schema}}.answer_shown(v_location, worker.name), v_status, {{schema}}.answer_shown(v_content, worker.name)
            USING HINT = 'Call create_queue_worker with the URL that needs no redirect.';
    END IF;
    IF v_status NOT BETWEEN 200 AND 299 THEN
        RAISE EXCEPTION 'worker %: the endpoint answered %: %', quote_literal(worker.name), v_status, {{schema}}.answer_shown(v_content, worker.name);
    END IF;
    PERFORM {{schema}}.note_call(worker.name, NULL);
    RETURN 'answered ' || v_status;
END
$$;

-- pg_net sends the request after commit, so its outcome is not this run's: the
-- view workers shows it.
CREATE FUNCTION {{schema}}.call_with_pg_net(worker {{schema}}.queue_workers) RETURNS text
LANGUAGE plpgsql VOLATILE SET search_path = '' AS $$
BEGIN
    IF {{schema}}.extension_schema('pg_net') IS NULL THEN
        RAISE EXCEPTION 'worker %: the extension pg_net is gone', quote_literal(worker.name) USING HINT = 'Install it, or call create_queue_worker again.';
    END IF;
    PERFORM {{schema}}.note_call(worker.name, {{schema}}.queue_request(worker));
    RETURN 'queued';
END
$$;

-- Returns the id of the request in pg_net's queue.
CREATE FUNCTION {{schema}}.queue_request(worker {{schema}}.queue_workers) RETURNS bigint
LANGUAGE plpgsql VOLATILE SET search_path = '' AS $$
DECLARE
    v_request bigint;
BEGIN
    EXECUTE 'SELECT net.http_post(url := $1, timeout_milliseconds := $2,
            headers := jsonb_build_object(''Authorization'', ''Bearer '' || {{schema}}.worker_token($3), ''Content-Type'', ''application/json''))'
        INTO v_request USING worker.endpoint, worker.timeout_seconds * 1000, worker.name;
    RETURN v_request;
END
$$;

-- Skipped where the row is locked: a create_queue_worker that is not committed
-- must not hold up a worker.
CREATE FUNCTION {{schema}}.note_call(worker text, request bigint) RETURNS void
LANGUAGE sql VOLATILE SET search_path = '' AS $$
    UPDATE {{schema}}.queue_workers SET called_at = clock_timestamp(), request_id = note_call.request
    WHERE name = (SELECT w.name FROM {{schema}}.queue_workers w WHERE w.name = note_call.worker FOR NO KEY UPDATE SKIP LOCKED)
$$;

-- Calls the workers of a queue ahead of their ticks, because a job was created
-- in it that is due. What this queues, pg_net sends when the transaction
-- commits, so a rollback wakes nobody.
--
-- A request that was asked for, and whose run has not begun, finds the jobs that
-- are created meanwhile too: until then (see begin_run) nobody asks for another.
-- One that takes longer than 10 seconds was lost. While the queue is paused,
-- nobody is called. Rows that somebody else has
-- locked are skipped: creations never wait for each other.
--
-- So a wake may be missed, and the tick finds the job: where a transaction
-- relied on a request, and committed after its run had made the last claim, or
-- that request was rolled back.
CREATE FUNCTION {{schema}}.wake_workers(queue text) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = '' SET lock_timeout = '1s' AS $$
DECLARE
    v_worker {{schema}}.queue_workers%ROWTYPE;
BEGIN
    FOR v_worker IN
        UPDATE {{schema}}.queue_workers SET wake_asked_at = clock_timestamp()
        WHERE name = ANY (ARRAY(
            SELECT w.name FROM {{schema}}.queue_workers w
            WHERE w.wake AND w.queue = wake_workers.queue
                AND (w.wake_asked_at IS NULL OR w.wake_asked_at < clock_timestamp() - interval '10 seconds')
                AND NOT coalesce((SELECT q.paused FROM {{schema}}.queues q WHERE q.name = w.queue), false)
            FOR NO KEY UPDATE SKIP LOCKED))
        RETURNING *
    LOOP
        -- Nothing that is wrong with it is a reason for the creation to fail. It
        -- counts as asked for all the same, or a burst would try and warn each
        -- time. The error's own text is not shown: it might have the headers in it.
        BEGIN
            IF {{schema}}.is_scheduled(v_worker) THEN
                PERFORM {{schema}}.queue_request(v_worker);
            END IF;
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING 'worker %: it can''t be woken, its schedule alone calls: %', quote_literal(v_worker.name),
                coalesce({{schema}}.wake_obstacle(), format('SQLSTATE %s; try SELECT net.http_post(%L); or call create_queue_worker again', SQLSTATE, v_worker.endpoint));
        END;
    END LOOP;
EXCEPTION WHEN serialization_failure OR lock_not_available THEN
    NULL; -- in REPEATABLE READ, the row was changed since the snapshot: others have asked, or a run has begun
END
$$;

-- Whether pg_cron has the worker's entry, and it is on. It does not show what
-- another role has scheduled; that counts as on.
CREATE FUNCTION {{schema}}.is_scheduled(worker {{schema}}.queue_workers) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
DECLARE
    v_scheduled boolean := worker.scheduled_by <> current_user;
BEGIN
    IF NOT v_scheduled AND {{schema}}.extension_schema('pg_cron') IS NOT NULL THEN
        EXECUTE 'SELECT EXISTS (SELECT FROM cron.job j WHERE j.jobname = $1 AND j.username = current_user AND j.command = $2 AND j.active)'
            INTO v_scheduled USING worker.name, {{schema}}.worker_command(worker.name);
    END IF;
    RETURN v_scheduled;
END
$$;

-- What a run does before it claims: it takes back what was running under lost
-- leases, fires recurring jobs, and lets creations ask for wakes again, because from here on they
-- can't rely on this run. That comes last, as their rows are locked for it.
-- Returns the jobs that were taken back.
CREATE FUNCTION {{schema}}.begin_run(queue text) RETURNS SETOF {{schema}}.jobs
LANGUAGE plpgsql VOLATILE SET search_path = '' AS $$
BEGIN
    RETURN QUERY SELECT * FROM {{schema}}.rescue();
    PERFORM {{schema}}.fire_recurring_jobs();
    UPDATE {{schema}}.queue_workers SET wake_asked_at = NULL
    WHERE name = ANY (ARRAY(
        SELECT w.name FROM {{schema}}.queue_workers w
        WHERE w.queue = begin_run.queue AND w.wake_asked_at IS NOT NULL FOR NO KEY UPDATE SKIP LOCKED));
END
$$;

-- The rows of the view workers. A function, because cron and net may be
-- missing when the schema is made.
CREATE FUNCTION {{schema}}.list_workers() RETURNS TABLE (
    name text, schedule text, active boolean, endpoint text, queue text, status text, http_extension text, timeout_seconds integer, wake boolean,
    created_at timestamptz, called_at timestamptz, last_run_at timestamptz, last_run_ended_at timestamptz,
    last_outcome text, last_message text, age interval
)
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
DECLARE
    v_answer text := 'NULL::text, NULL::text';
BEGIN
    IF {{schema}}.extension_schema('pg_cron') IS NULL THEN
        RETURN;
    END IF;
    -- A run that queued a request for pg_net came out as its answer did. Without
    -- one, the request is under way or lost; pg_net forgets answers in six hours.
    IF {{schema}}.extension_schema('pg_net') IS NOT NULL THEN
        v_answer := $q$
            CASE WHEN p.status_code BETWEEN 200 AND 299 THEN 'succeeded' WHEN p.id IS NOT NULL THEN 'failed'
                WHEN w.called_at > now() - make_interval(secs => w.timeout_seconds + 60) THEN 'queued' ELSE 'unanswered' END,
            coalesce(p.error_msg, p.status_code || ' ' || {{schema}}.answer_shown(p.content, w.name))
            FROM (SELECT) AS always LEFT JOIN net._http_response p ON p.id = w.request_id
            WHERE w.request_id IS NOT NULL AND d.status = 'succeeded' AND w.called_at >= d.start_time $q$;
    END IF;
    RETURN QUERY EXECUTE format($q$
        SELECT w.name, c.schedule, c.active, w.endpoint, w.queue, w.status, w.http_extension, w.timeout_seconds, w.wake,
            w.created_at, w.called_at, d.start_time, d.end_time,
            coalesce(a.outcome, d.status), coalesce(a.message, d.return_message), now() - d.start_time
        FROM {{schema}}.queue_workers w
        JOIN cron.job c ON c.jobname = w.name AND c.username = w.scheduled_by AND c.command = {{schema}}.worker_command(w.name)
        LEFT JOIN LATERAL (
            SELECT r.* FROM cron.job_run_details r WHERE r.jobid = c.jobid ORDER BY r.runid DESC LIMIT 1) AS d ON true
        LEFT JOIN LATERAL (SELECT %s) AS a (outcome, message) ON true
        ORDER BY w.name $q$, v_answer);
END
$$;

-- Every worker and what came of its last run; never its token. age is how long
-- ago that run began.
CREATE VIEW {{schema}}.workers AS SELECT * FROM {{schema}}.list_workers();
