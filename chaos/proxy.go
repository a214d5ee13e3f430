package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
)

// proxy is between the services and the database.
type proxy struct{ *toxiproxy.Proxy }

func startProxy(upstream string) (proxy, error) {
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	p := proxy{toxiproxy.NewProxy(server, "postgres", "127.0.0.1:0", upstream)}
	return p, p.Start()
}

// poison has a toxic at work until heal is called.
func (p proxy) poison(toxic, stream, attributes string) (heal func(), err error) {
	name := toxic + " " + stream
	_, err = p.Toxics.AddToxicJson(strings.NewReader(fmt.Sprintf(
		`{"name": %q, "type": %q, "stream": %q, "attributes": %s}`, name, toxic, stream, attributes)))
	return func() { _ = p.Toxics.RemoveToxic(context.Background(), name) }, err
}

// cut refuses connections, and drops those that there are, until heal is called.
func (p proxy) cut() (heal func() error) {
	p.Stop()
	return p.Start
}
