package scheduler

import (
	"context"
	"net/http"
	"strings"
)

// traceparentKey is that of the traceparent in a context.
type traceparentKey struct{}

// WithTraceparent returns a context that carries a W3C trace context: the value
// of a header traceparent, such as
// "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01". Jobs that are
// created with it keep it, and the contexts of their handlers have it again, in
// every attempt and in whatever process. So what a job does belongs to the trace
// of what created it, and so do the jobs that its handler creates.
//
// A malformed value is ignored: the context that comes back is ctx.
func WithTraceparent(ctx context.Context, traceparent string) context.Context {
	if traceparent = checkedTraceparent(traceparent); traceparent == "" {
		return ctx
	}
	return context.WithValue(ctx, traceparentKey{}, traceparent)
}

// Traceparent returns the W3C trace context that ctx carries; "" if it carries
// none. In a handler that is the one with which the job was created, or if there
// was none the one of the context given to Run or Work.
func Traceparent(ctx context.Context) string {
	traceparent, _ := ctx.Value(traceparentKey{}).(string)
	return traceparent
}

// withTraceparentOf is for a creation by a request. What the host has put into
// the request's context goes before its header: it is a span below that one.
func withTraceparentOf(ctx context.Context, r *http.Request) context.Context {
	// More than one is none: nobody could tell which it is.
	if sent := r.Header.Values("traceparent"); len(sent) == 1 && Traceparent(ctx) == "" {
		return WithTraceparent(ctx, sent[0])
	}
	return ctx
}

// Where the parts of a traceparent of version 00 end.
const (
	versionEnd  = 2
	traceIDEnd  = versionEnd + 1 + 32
	parentIDEnd = traceIDEnd + 1 + 16
	flagsEnd    = parentIDEnd + 1 + 2
)

// checkedTraceparent returns what is to be handed on of a traceparent; "" if it
// is malformed. As the recommendation says, one of a later version counts as one
// of version 00, of which it may have more parts behind those known.
func checkedTraceparent(text string) string {
	if len(text) < flagsEnd || text[versionEnd] != '-' || text[traceIDEnd] != '-' || text[parentIDEnd] != '-' {
		return ""
	}
	version, flags := text[:versionEnd], text[parentIDEnd+1:flagsEnd]
	traceID, parentID := text[versionEnd+1:traceIDEnd], text[traceIDEnd+1:parentIDEnd]
	switch {
	case !isLowerHex(version) || !isLowerHex(traceID) || !isLowerHex(parentID) || !isLowerHex(flags):
	case strings.Trim(traceID, "0") == "" || strings.Trim(parentID, "0") == "" || version == "ff":
	case version == "00":
		if len(text) == flagsEnd {
			return text
		}
	case len(text) == flagsEnd || text[flagsEnd] == '-':
		sampled := "00"
		if strings.IndexByte("13579bdf", flags[1]) >= 0 { // the only flag that is known of every version
			sampled = "01"
		}
		return "00-" + traceID + "-" + parentID + "-" + sampled
	}
	return ""
}

func isLowerHex(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool { return (r < '0' || r > '9') && (r < 'a' || r > 'f') })
}
