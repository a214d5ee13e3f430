-- Workers: pg_cron entries that call the Run endpoint of a service.

CREATE TABLE {{schema}}.queue_workers (
    name            text        CONSTRAINT queue_workers_pkey PRIMARY KEY,
    endpoint        text        NOT NULL,
    queue           text        NOT NULL,
    status          text        NOT NULL,
    http_extension  text        NOT NULL,
    timeout_seconds integer     NOT NULL,
    token           text,       -- NULL where Supabase Vault keeps it
    secret_id       uuid,       -- the secret in Supabase Vault
    created_at      timestamptz NOT NULL DEFAULT now(),
    called_at       timestamptz, -- when it last made a request that was answered well
    request_id      bigint,      -- of that request, with pg_net

    CONSTRAINT queue_workers_status_known CHECK (status IN ('pending', 'failed', 'any')),
    CONSTRAINT queue_workers_http_extension_known CHECK (http_extension IN ('http', 'pg_net')),
    CONSTRAINT queue_workers_timeout_in_range CHECK (timeout_seconds BETWEEN 1 AND 300),
    CONSTRAINT queue_workers_token_is_somewhere CHECK (num_nonnulls(token, secret_id) = 1)
);

-- The schema of an installed extension, NULL if it is not installed.
CREATE FUNCTION {{schema}}.extension_schema(extension text) RETURNS text
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT n.nspname::text FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace
    WHERE e.extname = extension
$$;

-- Refuses, with what to do, where pg_cron can't schedule into this database.
CREATE FUNCTION {{schema}}.require_cron() RETURNS void
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
DECLARE
    v_database text;
BEGIN
    BEGIN
        v_database := pg_catalog.current_setting('cron.database_name', true);
    EXCEPTION WHEN insufficient_privilege THEN
        v_database := NULL; -- pg_cron shows it to few; where its extension is, its database is almost always
    END;
    IF v_database <> pg_catalog.current_database() THEN
        RAISE EXCEPTION 'pg_cron schedules into the database %, this one is %', quote_literal(v_database), quote_literal(current_database())
            USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = format('Keep the jobs in the database %I, or set cron.database_name to %L and restart Postgres.', v_database, current_database());
    END IF;
    IF {{schema}}.extension_schema('pg_cron') IS NULL THEN
        IF EXISTS (SELECT FROM pg_catalog.pg_available_extensions WHERE name = 'pg_cron') THEN
            RAISE EXCEPTION 'the extension pg_cron is missing in the database %', quote_literal(current_database())
                USING ERRCODE = 'object_not_in_prerequisite_state',
                HINT = 'Run CREATE EXTENSION pg_cron; (it needs shared_preload_libraries = ''pg_cron'' and works in the database named by cron.database_name only).';
        END IF;
        RAISE EXCEPTION 'the extension pg_cron is not installed on this server'
            USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'Install it, or do without workers: let the service call Work, or let any outside cron POST to the Run endpoint.';
    END IF;
END
$$;

-- The value of a parameter in a URL's query, NULL if it is absent.
CREATE FUNCTION {{schema}}.url_parameter(url text, parameter text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = '' AS $$
    SELECT (pg_catalog.regexp_match(pg_catalog.split_part(url, '#', 1), '[?&]' || parameter || '=([^&]*)'))[1]
$$;

-- Creates a worker, or replaces the one of this name, and switches it on.
-- The token goes into Supabase Vault where that is installed, else into a table
-- that only its owner can read; it is in no command, log or view.
--   timeout_seconds  how long one call may take in all; above the service's
--                    RunWait, so that it is answered
--   http_extension   'http' (pgsql-http) or 'pg_net'; NULL: the first of them
--                    that is installed
-- Returns the id of its entry in cron.job.
CREATE FUNCTION {{schema}}.create_queue_worker(
    name text, endpoint text, token text, schedule text,
    timeout_seconds integer DEFAULT 10, http_extension text DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql VOLATILE SET search_path = '' AS $$
DECLARE
    v_queue     text;
    v_status    text;
    v_limit     text;
    v_extension text;
    v_job_id    bigint;
BEGIN
    IF name IS NULL OR name !~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$' THEN
        RAISE EXCEPTION 'create_queue_worker: name %: expected 1 to 63 letters, digits or _ . -, beginning with a letter or digit',
            coalesce(quote_literal(left(name, 64)), 'NULL') USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- Never shown whole: a URL may carry credentials.
    IF endpoint IS NULL OR endpoint !~* '^https?://[^/?#@[:space:]]+(/[^[:space:]]*)?$' OR length(endpoint) > 2000 THEN
        RAISE EXCEPTION 'create_queue_worker: endpoint %: expected an http or https URL without user and password, such as https://app.example.com/api/jobs/run',
            coalesce(quote_literal(left(regexp_replace(endpoint, '//[^/]*@', '//…@'), 64)), 'NULL') USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF token IS NULL OR token !~ '^[!-~]+$' OR length(token) > 4096 THEN
        RAISE EXCEPTION 'create_queue_worker: token: expected 1 to 4096 visible ASCII characters without spaces' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF timeout_seconds IS NULL OR timeout_seconds NOT BETWEEN 1 AND 300 THEN
        RAISE EXCEPTION 'create_queue_worker: timeout_seconds %: expected 1 to 300', coalesce(timeout_seconds::text, 'NULL') USING ERRCODE = 'invalid_parameter_value';
    END IF;
    v_queue := coalesce(nullif({{schema}}.url_parameter(endpoint, 'queue'), ''), 'default');
    v_status := coalesce(nullif({{schema}}.url_parameter(endpoint, 'status'), ''), CASE v_queue WHEN 'failed' THEN 'failed' ELSE 'pending' END);
    v_limit := coalesce(nullif({{schema}}.url_parameter(endpoint, 'limit'), ''), '1');
    IF v_queue !~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$' THEN
        RAISE EXCEPTION 'create_queue_worker: endpoint has queue=%: expected the name of a queue', left(v_queue, 64) USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF v_status NOT IN ('pending', 'failed', 'any') OR v_queue = 'failed' AND v_status <> 'failed' THEN
        RAISE EXCEPTION 'create_queue_worker: endpoint has status=%: expected pending, failed or any (queue=failed takes only failed)', left(v_status, 64)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF v_limit !~ '^[0-9]{1,5}$' OR v_limit::integer NOT BETWEEN 1 AND 10000 THEN
        RAISE EXCEPTION 'create_queue_worker: endpoint has limit=%: expected 1 to 10000', left(v_limit, 64) USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF v_queue = 'failed' THEN
        v_queue := 'default';
    ELSIF NOT EXISTS (SELECT FROM {{schema}}.queues q WHERE q.name = v_queue) THEN
        RAISE WARNING 'queue % is not declared yet: declare it in Config.Queues and call Migrate', quote_literal(v_queue);
    END IF;

    PERFORM {{schema}}.require_cron();
    v_extension := {{schema}}.choose_http_extension(http_extension);
    PERFORM {{schema}}.check_schedule(schedule);

    PERFORM {{schema}}.keep_token(name, token);
    UPDATE {{schema}}.queue_workers w
    SET endpoint = create_queue_worker.endpoint, queue = v_queue, status = v_status, http_extension = v_extension,
        timeout_seconds = create_queue_worker.timeout_seconds, called_at = NULL, request_id = NULL
    WHERE w.name = create_queue_worker.name;

    -- cron.schedule leaves an entry switched off that was off, and the functions
    -- that switch it on are not granted to everybody: make such an entry anew.
    EXECUTE 'SELECT cron.unschedule(j.jobid) FROM cron.job j WHERE j.jobname = $1 AND j.username = current_user AND NOT j.active' USING name;
    EXECUTE 'SELECT cron.schedule($1, $2, $3)' INTO v_job_id
        USING name, schedule, format('SELECT %I.run_worker(%L)', '{{schema_name}}', name);
    RETURN v_job_id;
END
$$;

CREATE FUNCTION {{schema}}.choose_http_extension(wanted text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
BEGIN
    IF wanted IS NOT NULL AND wanted NOT IN ('http', 'pg_net') THEN
        RAISE EXCEPTION 'create_queue_worker: http_extension %: expected ''http'' or ''pg_net''', quote_literal(left(wanted, 64))
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF coalesce(wanted, 'http') = 'http' AND {{schema}}.extension_schema('http') IS NOT NULL THEN
        RETURN 'http';
    END IF;
    IF coalesce(wanted, 'pg_net') = 'pg_net' AND {{schema}}.extension_schema('pg_net') IS NOT NULL THEN
        RETURN 'pg_net';
    END IF;
    RAISE EXCEPTION 'the extension % is missing in the database %', coalesce(wanted, 'http (pgsql-http)'), quote_literal(current_database())
        USING ERRCODE = 'object_not_in_prerequisite_state',
        HINT = 'Run CREATE EXTENSION http; (or pg_net), or do without: let the service call Work, or let any outside cron POST to the Run endpoint.';
END
$$;

-- Refuses what pg_cron would refuse less clearly. What passes here is checked
-- again by cron.schedule.
CREATE FUNCTION {{schema}}.check_schedule(schedule text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
DECLARE
    v_version text;
BEGIN
    IF schedule IS NULL OR schedule !~ '^\s*(@(yearly|annually|monthly|weekly|daily|midnight|hourly)|([-0-9A-Za-z*,/$]+\s+){4}[-0-9A-Za-z*,/]+|[1-5]?[0-9] seconds?)\s*$' THEN
        RAISE EXCEPTION 'create_queue_worker: schedule %: expected five fields such as ''* * * * *'', or ''@hourly'', ''@daily'' and the like',
            coalesce(quote_literal(left(schedule, 64)), 'NULL') USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT e.extversion INTO v_version FROM pg_catalog.pg_extension e WHERE e.extname = 'pg_cron';
    IF schedule ~ 'seconds?\s*$' AND regexp_replace(v_version, '-.*', '')::numeric < 1.5 THEN
        RAISE EXCEPTION 'create_queue_worker: schedule %: pg_cron % has no schedules in seconds, version 1.5 was the first', quote_literal(schedule), v_version
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Use ''* * * * *'' (every minute), or update pg_cron.';
    END IF;
END
$$;

-- Stores a worker's token, in Vault if there is one. Makes the worker's row if
-- it is new; its other columns are filled in by create_queue_worker.
CREATE FUNCTION {{schema}}.keep_token(worker text, token text) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = '' AS $$
DECLARE
    v_secret uuid;
    v_name   text := '{{schema_name}} worker ' || worker;
BEGIN
    IF {{schema}}.extension_schema('supabase_vault') IS NOT NULL THEN
        EXECUTE 'SELECT id FROM vault.secrets WHERE name = $1' INTO v_secret USING v_name;
        IF v_secret IS NULL THEN
            EXECUTE 'SELECT vault.create_secret($1, $2)' INTO v_secret USING token, v_name;
        ELSE
            EXECUTE 'SELECT vault.update_secret($1, $2)' USING v_secret, token;
        END IF;
        token := NULL;
    END IF;
    INSERT INTO {{schema}}.queue_workers AS w (name, endpoint, queue, status, http_extension, timeout_seconds, token, secret_id)
    VALUES (worker, '', 'default', 'pending', 'http', 10, keep_token.token, v_secret)
    ON CONFLICT ON CONSTRAINT queue_workers_pkey DO UPDATE SET token = excluded.token, secret_id = excluded.secret_id;
END
$$;

-- Removes a worker and its token; says whether there was one.
CREATE FUNCTION {{schema}}.remove_queue_worker(name text) RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = '' AS $$
DECLARE
    v_worker {{schema}}.queue_workers%ROWTYPE;
    v_found  boolean;
BEGIN
    DELETE FROM {{schema}}.queue_workers w WHERE w.name = remove_queue_worker.name RETURNING * INTO v_worker;
    v_found := FOUND;
    IF v_worker.secret_id IS NOT NULL AND {{schema}}.extension_schema('supabase_vault') IS NOT NULL THEN
        EXECUTE 'DELETE FROM vault.secrets WHERE id = $1' USING v_worker.secret_id;
    END IF;
    IF {{schema}}.extension_schema('pg_cron') IS NOT NULL THEN
        EXECUTE 'SELECT count(cron.unschedule(j.jobid)) > 0 OR $3 FROM cron.job j
                 WHERE j.jobname = $1 AND j.username = current_user AND j.command = $2' INTO v_found
            USING name, format('SELECT %I.run_worker(%L)', '{{schema_name}}', name), v_found;
    END IF;
    RETURN v_found;
END
$$;

-- What pg_cron runs: one HTTP request if a run with the worker's filter would
-- pick something now, none otherwise. Doubled or replayed ticks are harmless:
-- a request is only a hint to look.
--
-- client_min_messages: pgsql-http writes headers, so the token, to debug messages.
CREATE FUNCTION {{schema}}.run_worker(name text) RETURNS text
LANGUAGE plpgsql VOLATILE SET search_path = '' SET client_min_messages = 'warning' AS $$
DECLARE
    v_worker {{schema}}.queue_workers%ROWTYPE;
    v_token  text;
BEGIN
    SELECT * INTO v_worker FROM {{schema}}.queue_workers w WHERE w.name = run_worker.name;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'worker % does not exist', quote_literal(left(name, 64)) USING ERRCODE = 'undefined_object',
            HINT = 'Make it with create_queue_worker, or remove its entry with cron.unschedule.';
    END IF;
    IF {{schema}}.next_due(v_worker.queue, v_worker.status) > now() IS NOT FALSE THEN
        RETURN 'nothing due';
    END IF;

    v_token := v_worker.token;
    IF v_worker.secret_id IS NOT NULL THEN
        EXECUTE 'SELECT decrypted_secret FROM vault.decrypted_secrets WHERE id = $1' INTO v_token USING v_worker.secret_id;
        IF v_token IS NULL THEN
            RAISE EXCEPTION 'worker %: its token is no longer in the vault', quote_literal(name) USING HINT = 'Call create_queue_worker again.';
        END IF;
    END IF;
    IF v_worker.http_extension = 'http' THEN
        RETURN {{schema}}.call_with_http(v_worker, v_token);
    END IF;
    RETURN {{schema}}.call_with_pg_net(v_worker, v_token);
END
$$;

CREATE FUNCTION {{schema}}.call_with_http(worker {{schema}}.queue_workers, token text) RETURNS text
LANGUAGE plpgsql VOLATILE SET search_path = '' SET client_min_messages = 'warning' AS $$
DECLARE
    v_schema   text := {{schema}}.extension_schema('http');
    v_status   integer;
    v_content  text;
    v_redirect boolean;
BEGIN
    IF v_schema IS NULL THEN
        RAISE EXCEPTION 'worker %: the extension http (pgsql-http) is gone', quote_literal(worker.name) USING HINT = 'Install it, or call create_queue_worker again.';
    END IF;
    -- Every tick is a new session, so they are set every time, and in the one
    -- way that works in all versions. The defaults are 1 s and 5 s.
    EXECUTE format('SELECT %1$I.http_set_curlopt(''CURLOPT_CONNECTTIMEOUT'', $1), %1$I.http_set_curlopt(''CURLOPT_TIMEOUT'', $2)', v_schema)
        USING least(5, worker.timeout_seconds)::text, worker.timeout_seconds::text;
    -- The function stands in FROM so that it is called once.
    EXECUTE format(
        'SELECT r.status, r.content, EXISTS (SELECT FROM pg_catalog.unnest(r.headers) AS h WHERE pg_catalog.lower(h.field) = ''location'')
         FROM %1$I.http(ROW(''POST'', $1, ARRAY[ROW(''Authorization'', ''Bearer '' || $2)]::%1$I.http_header[],
                            ''application/json'', ''{}'')::%1$I.http_request) AS r', v_schema)
        INTO v_status, v_content, v_redirect USING worker.endpoint, token;
    IF v_redirect THEN
        RAISE EXCEPTION 'worker %: the endpoint redirects, which turns its POST into another request', quote_literal(worker.name)
            USING HINT = 'Call create_queue_worker with the URL that it redirects to.';
    END IF;
    IF v_status NOT BETWEEN 200 AND 299 OR v_status IS NULL THEN
        RAISE EXCEPTION 'worker %: the endpoint answered %: %', quote_literal(worker.name), coalesce(v_status::text, 'nothing'),
            left(coalesce(v_content, ''), 300);
    END IF;
    UPDATE {{schema}}.queue_workers w SET called_at = clock_timestamp() WHERE w.name = worker.name;
    RETURN 'answered ' || v_status;
END
$$;

-- pg_net sends the request after commit, so its outcome is not this run's: the
-- view workers shows it.
CREATE FUNCTION {{schema}}.call_with_pg_net(worker {{schema}}.queue_workers, token text) RETURNS text
LANGUAGE plpgsql VOLATILE SET search_path = '' SET client_min_messages = 'warning' AS $$
DECLARE
    v_request bigint;
BEGIN
    EXECUTE 'SELECT net.http_post(url := $1, headers := $2, timeout_milliseconds := $3)' INTO v_request
        USING worker.endpoint, jsonb_build_object('Authorization', 'Bearer ' || token, 'Content-Type', 'application/json'), worker.timeout_seconds * 1000;
    UPDATE {{schema}}.queue_workers w SET called_at = clock_timestamp(), request_id = v_request WHERE w.name = worker.name;
    RETURN 'queued';
END
$$;

-- The rows of the view workers. A function, because cron and net may be
-- missing when the schema is made.
CREATE FUNCTION {{schema}}.list_workers() RETURNS TABLE (
    name text, schedule text, active boolean, endpoint text, queue text, status text, http_extension text, created_at timestamptz, called_at timestamptz,
    last_run_at timestamptz, last_run_ended_at timestamptz, last_outcome text, last_message text, age interval
)
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
DECLARE
    v_answer text := 'NULL::text, NULL::text';
BEGIN
    IF {{schema}}.extension_schema('pg_cron') IS NULL THEN
        RETURN;
    END IF;
    IF {{schema}}.extension_schema('pg_net') IS NOT NULL THEN
        v_answer := $q$
            (SELECT CASE WHEN p.status_code BETWEEN 200 AND 299 THEN 'succeeded' ELSE 'failed' END FROM net._http_response p WHERE p.id = w.request_id),
            (SELECT coalesce(p.error_msg, p.status_code || ' ' || left(p.content, 300)) FROM net._http_response p WHERE p.id = w.request_id) $q$;
    END IF;
    RETURN QUERY EXECUTE format($q$
        SELECT w.name, c.schedule, c.active, w.endpoint, w.queue, w.status, w.http_extension, w.created_at, w.called_at,
            d.start_time, d.end_time, coalesce(a.outcome, d.status), coalesce(a.message, d.return_message), now() - d.start_time
        FROM {{schema}}.queue_workers w
        JOIN cron.job c ON c.jobname = w.name AND c.command = format('SELECT %%I.run_worker(%%L)', '{{schema_name}}', w.name)
        LEFT JOIN LATERAL (
            SELECT r.* FROM cron.job_run_details r WHERE r.jobid = c.jobid ORDER BY r.runid DESC LIMIT 1) AS d ON true
        LEFT JOIN LATERAL (SELECT %s) AS a (outcome, message) ON true
        ORDER BY w.name $q$, v_answer);
END
$$;

-- Every worker and what came of its last run; never its token. age is how long
-- ago that run began.
CREATE VIEW {{schema}}.workers AS SELECT * FROM {{schema}}.list_workers();
