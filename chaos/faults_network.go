package main

import "context"

// networkFaults are those between the services and the database.
func networkFaults() []fault {
	return []fault{
		{"answers of the database delayed", toxic("latency", "downstream", `{"latency": 100, "jitter": 100}`)},
		{"statements delayed", toxic("latency", "upstream", `{"latency": 50, "jitter": 50}`)},
		{"answers of the database stalled", toxic("timeout", "downstream", `{"timeout": 0}`)},
		{"statements stalled", toxic("timeout", "upstream", `{"timeout": 0}`)},
		{"connections reset when they answer", toxic("reset_peer", "downstream", `{"timeout": 0}`)},
		{"connections reset when they ask", toxic("reset_peer", "upstream", `{"timeout": 10}`)},
		{"answers cut in the middle", toxic("limit_data", "downstream", `{"bytes": 20000}`)},
		{"database not reachable", func(ctx context.Context, c *chaos) error {
			heal := c.proxy.cut()
			sleep(ctx, lasts())
			return heal()
		}},
	}
}

func toxic(name, stream, attributes string) func(context.Context, *chaos) error {
	return func(ctx context.Context, c *chaos) error {
		heal, err := c.proxy.poison(name, stream, attributes)
		if err != nil {
			return err
		}
		defer heal()
		sleep(ctx, lasts())
		return nil
	}
}
