package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"

	"github.com/relay-club/scheduler"
)

const (
	callers   = 4
	httpLimit = 1000
)

// measureHTTP: the drain through the Run endpoint, by callers that call again
// as soon as they are answered.
func (b *bench) measureHTTP(ctx context.Context, sys system) (values, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	db, err := b.server.newDatabase(ctx, b.statements)
	if err != nil {
		return nil, err
	}
	defer db.drop()
	jobs := newTally(b.jobs)
	e, err := openOurs(ctx, db.pool, jobs.start)
	if err != nil {
		return nil, err
	}
	library := e.(*library)
	server := httptest.NewServer(library.Handler())
	defer server.Close()
	perSecond, err := b.drain(ctx, sys, "http", db, e, jobs, func() (func() error, error) {
		return callRuns(ctx, cancel, server.URL, jobs.all), nil
	})
	return values{rowHTTP: perSecond}, errors.Join(err, library.shutdown())
}

// callRuns starts the callers. They end when all jobs have started, which wait
// waits for; one that fails ends the measurement.
func callRuns(ctx context.Context, fail context.CancelCauseFunc, server string, all <-chan struct{}) (wait func() error) {
	url := fmt.Sprintf("%s%s/run?limit=%d", server, basePath, httpLimit)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: callers}}
	var group sync.WaitGroup
	for range callers {
		group.Go(func() {
			for !isClosed(all) {
				if err := callRun(ctx, client, url); err != nil {
					fail(err)
					return
				}
			}
		})
	}
	return func() error {
		group.Wait()
		client.CloseIdleConnections()
		return context.Cause(ctx)
	}
}

func callRun(ctx context.Context, client *http.Client, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, nil)
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+token)
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK && response.StatusCode != http.StatusAccepted {
		return fmt.Errorf("the Run endpoint answered %s", response.Status)
	}
	var report scheduler.RunReport
	if err := json.NewDecoder(response.Body).Decode(&report); err != nil {
		return err
	}
	if report.Failed+report.Dead+report.Lost > 0 {
		return fmt.Errorf("jobs did not succeed: %+v", report)
	}
	return nil
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
