-- A stand-in for the extension http (pgsql-http), of which Debian has no
-- package: its types, its functions and its behaviour as far as workers depend
-- on them. Requests are real.

CREATE EXTENSION IF NOT EXISTS plpython3u;

CREATE DOMAIN {{schema}}.http_method AS text;
CREATE TYPE {{schema}}.http_header AS (field varchar, value varchar);
CREATE TYPE {{schema}}.http_request AS (
    method       {{schema}}.http_method,
    uri          varchar,
    headers      {{schema}}.http_header[],
    content_type varchar,
    content      varchar
);
CREATE TYPE {{schema}}.http_response AS (
    status       integer,
    content_type varchar,
    headers      {{schema}}.http_header[],
    content      varchar
);

CREATE FUNCTION {{schema}}.http_header(field varchar, value varchar) RETURNS {{schema}}.http_header
LANGUAGE sql AS $$ SELECT $1, $2 $$;

-- Options hold for the session. Seconds and milliseconds are one setting with
-- two names: the later call wins.
CREATE FUNCTION {{schema}}.http_set_curlopt(curlopt varchar, value varchar) RETURNS boolean
LANGUAGE plpython3u AS $$
if curlopt is None or value is None:
    return False
name, per_second = curlopt.upper(), 1
if name.endswith("_MS"):
    name, per_second = name[:-3], 1000
if name not in ("CURLOPT_TIMEOUT", "CURLOPT_CONNECTTIMEOUT"):
    plpy.error("curl option '%s' is not available for run-time configuration" % curlopt, sqlstate="XX000")
# Text that is no number counts as 0, and 0 is libcurl's word for its own
# default: no end to the whole (here: a day), 300 seconds to connect.
seconds = (int(value) if value.isdecimal() else 0) / per_second
GD.setdefault("http_curlopts", {})[name] = seconds or (300 if name == "CURLOPT_CONNECTTIMEOUT" else 86400)
return True
$$;

CREATE FUNCTION {{schema}}.http_reset_curlopt() RETURNS boolean
LANGUAGE plpython3u AS $$
GD.pop("http_curlopts", None)
return True
$$;

CREATE FUNCTION {{schema}}.http(request {{schema}}.http_request) RETURNS {{schema}}.http_response
LANGUAGE plpython3u AS $$
import http.client, io, socket, ssl, time
from urllib.parse import urljoin, urlsplit

def fail(message):
    plpy.error(message, sqlstate="XX000")

options = GD.get("http_curlopts", {})
whole = options.get("CURLOPT_TIMEOUT", 5.0)
connecting = options.get("CURLOPT_CONNECTTIMEOUT", 1.0)
began = time.monotonic()

def left():
    seconds = began + whole - time.monotonic()
    if seconds <= 0:
        raise socket.timeout()
    return seconds

class Incoming(io.RawIOBase):
    """What the server sends, until the time for the whole request is up."""
    def __init__(self, sock):
        self.sock = sock
    def readable(self):
        return True
    def readinto(self, buffer):
        while True:
            self.sock.settimeout(min(left(), 0.1))
            try:
                return self.sock.recv_into(buffer)
            except socket.timeout:
                # A statement is where Postgres looks whether the call is to
                # end early: a cancel, statement_timeout, a shutdown.
                plpy.execute("SELECT")

class Bounded:
    """As much of a socket as http.client asks for."""
    def __init__(self, sock):
        self.sock = sock
    def sendall(self, data):
        self.sock.settimeout(left())
        self.sock.sendall(data)
    def makefile(self, *_):
        return io.BufferedReader(Incoming(self.sock))
    def close(self):
        pass  # http.client closes before it has read; send does it

def send(method, url, headers, body):
    host, port = url.hostname, url.port or (443 if url.scheme == "https" else 80)
    at = time.monotonic()
    try:
        sock = socket.create_connection((host, port), timeout=min(connecting, left()))
    except socket.timeout:
        fail("Connection timed out after %d milliseconds" % ((time.monotonic() - at) * 1000))
    except OSError as e:
        fail("Failed to connect to %s port %d: %s" % (host, port, e.strerror))
    connection = http.client.HTTPConnection(host, port)
    try:
        if url.scheme == "https":
            sock = ssl.create_default_context().wrap_socket(sock, server_hostname=host)
        connection.sock = Bounded(sock)
        connection.request(method, (url.path or "/") + ("?" + url.query if url.query else ""), body, headers)
        response = connection.getresponse()
        return response, response.read()
    finally:
        sock.close()

method, body = request["method"], request["content"]
if request["uri"] is None:
    fail("http_request.uri is NULL")
if method is None:
    fail("http_request.method is NULL")
if body is None and method.upper() in ("POST", "PUT"):
    fail("http_request.content is NULL")
if body is not None and request["content_type"] is None:
    fail("http_request.content_type is NULL")

method = method.upper()
headers = {"Connection": "close"}
if body is not None:
    headers["Content-Type"] = request["content_type"]
    body = body.encode()
for header in request["headers"] or []:
    headers[header["field"]] = header["value"] or ""

url, received = urlsplit(request["uri"]), []
try:
    for hops in range(7):
        if hops > 5:
            fail("Maximum (5) redirects followed")
        if url.scheme not in ("http", "https") or not url.hostname:
            fail("URL using bad/illegal format or missing URL")
        response, content = send(method, url, headers, body)
        # Those of every hop, as libcurl reports them.
        received += [{"field": field, "value": value} for field, value in response.getheaders()]
        location = response.getheader("Location")
        if method == "HEAD" or location is None or response.status not in (301, 302, 303, 307, 308):
            break
        target = urlsplit(urljoin(url.geturl(), location))
        if response.status in (301, 302, 303) and method == "POST":
            method, body = "GET", None
        if (target.scheme, target.netloc) != (url.scheme, url.netloc):
            headers = {f: v for f, v in headers.items() if f.lower() not in ("authorization", "cookie")}
        url = target
except socket.timeout:
    fail("Operation timed out after %d milliseconds" % ((time.monotonic() - began) * 1000))
except (OSError, http.client.HTTPException) as e:
    fail("%s: %s" % (type(e).__name__, e))

return {
    "status": response.status,
    "content_type": response.getheader("Content-Type"),
    "headers": received,
    "content": content.decode(response.headers.get_content_charset() or "utf-8", "replace") or None,
}
$$;

ALTER EXTENSION http ADD DOMAIN {{schema}}.http_method;
ALTER EXTENSION http ADD TYPE {{schema}}.http_header;
ALTER EXTENSION http ADD TYPE {{schema}}.http_request;
ALTER EXTENSION http ADD TYPE {{schema}}.http_response;
ALTER EXTENSION http ADD FUNCTION {{schema}}.http_header(varchar, varchar);
ALTER EXTENSION http ADD FUNCTION {{schema}}.http_set_curlopt(varchar, varchar);
ALTER EXTENSION http ADD FUNCTION {{schema}}.http_reset_curlopt();
ALTER EXTENSION http ADD FUNCTION {{schema}}.http({{schema}}.http_request);
