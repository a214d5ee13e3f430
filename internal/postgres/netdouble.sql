-- A stand-in for the extension pg_net, which Debian does not package: its queue,
-- its answers and its http_post. In place of its background process there is
-- net.deliver(), so that a test decides when what is queued is sent.

CREATE EXTENSION IF NOT EXISTS plpython3u;

CREATE DOMAIN net.http_method AS text CHECK (VALUE ILIKE 'get' OR VALUE ILIKE 'post' OR VALUE ILIKE 'delete');

-- Unlogged, as they are there: a crash empties both.
CREATE UNLOGGED TABLE net.http_request_queue (
    id                   bigserial,
    method               net.http_method NOT NULL,
    url                  text            NOT NULL,
    headers              jsonb,
    body                 bytea,
    timeout_milliseconds integer         NOT NULL
);
CREATE UNLOGGED TABLE net._http_response (
    id           bigint,
    status_code  integer,
    content_type text,
    headers      jsonb,
    content      text,
    timed_out    boolean,
    error_msg    text,
    created      timestamptz NOT NULL DEFAULT now()
);

CREATE FUNCTION net.http_post(
    url text,
    body jsonb DEFAULT '{}',
    params jsonb DEFAULT '{}',
    headers jsonb DEFAULT '{"Content-Type": "application/json"}',
    timeout_milliseconds integer DEFAULT 5000
) RETURNS bigint LANGUAGE plpython3u AS $$
import json
from urllib.parse import urlencode

if body is None:
    plpy.error("body must not be null")
sent = json.loads(headers or "{}")
kind = next((value for field, value in sent.items() if field.lower() == "content-type"), None)
if kind is None:
    sent["Content-Type"] = kind = "application/json"
if kind != "application/json":
    plpy.error('Content-Type header must be "application/json"')
query = urlencode(json.loads(params or "{}"))
target = url + ("&" if "?" in url else "?") + query if query else url

insert = plpy.prepare(
    "INSERT INTO net.http_request_queue (method, url, headers, body, timeout_milliseconds) "
    "VALUES ('POST', $1, $2, $3, $4) RETURNING id", ["text", "jsonb", "bytea", "integer"])
return plpy.execute(insert, [target, json.dumps(sent), body.encode(), timeout_milliseconds])[0]["id"]
$$;

-- Sends what is queued for URLs that begin so, one request after the other, and
-- says how many.
CREATE FUNCTION net.deliver(beginning text DEFAULT '') RETURNS integer LANGUAGE plpython3u AS $$
import json, socket, urllib.error, urllib.request

class AnyStatus(urllib.request.HTTPErrorProcessor):
    """An answer is an answer, whatever its status."""
    def http_response(self, request, response):
        return response
    https_response = http_response

# No proxy from the server's environment.
opener = urllib.request.build_opener(AnyStatus, urllib.request.ProxyHandler({}))
store = plpy.prepare(
    "INSERT INTO net._http_response (id, status_code, content_type, headers, content, timed_out, error_msg) "
    "VALUES ($1, $2, $3, $4, $5, $6, $7)", ["bigint", "integer", "text", "jsonb", "text", "boolean", "text"])

take = plpy.prepare("WITH taken AS (DELETE FROM net.http_request_queue WHERE starts_with(url, $1) RETURNING *) "
                    "SELECT * FROM taken ORDER BY id", ["text"])
queued = plpy.execute(take, [beginning])
for row in queued:
    answer = [None, None, None, None, False, None]
    request = urllib.request.Request(row["url"], row["body"], json.loads(row["headers"] or "{}"), method=row["method"])
    try:
        with opener.open(request, timeout=row["timeout_milliseconds"] / 1000) as response:
            answer = [response.status, response.headers.get("Content-Type"), json.dumps(dict(response.headers)),
                      response.read().decode("utf-8", "replace"), False, None]
    except Exception as e:
        late = isinstance(e, socket.timeout) or isinstance(getattr(e, "reason", None), socket.timeout)
        answer[4] = late
        answer[5] = "Timeout of %d ms reached" % row["timeout_milliseconds"] if late else str(e)
    plpy.execute(store, [row["id"]] + answer)
return len(queued)
$$;

-- As there: every role can read what is queued, tokens included.
GRANT USAGE ON SCHEMA net TO PUBLIC;
GRANT ALL ON ALL SEQUENCES IN SCHEMA net TO PUBLIC;
GRANT ALL ON ALL TABLES IN SCHEMA net TO PUBLIC;

ALTER EXTENSION pg_net ADD DOMAIN net.http_method;
ALTER EXTENSION pg_net ADD TABLE net.http_request_queue;
ALTER EXTENSION pg_net ADD TABLE net._http_response;
ALTER EXTENSION pg_net ADD FUNCTION net.http_post(text, jsonb, jsonb, jsonb, integer);
ALTER EXTENSION pg_net ADD FUNCTION net.deliver(text);
