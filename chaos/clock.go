package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// moveClock moves what time.Now tells in this process. It is nil in programs that
// were built without.
var moveClock func(by time.Duration)

const (
	now      = "sec, nsec, mono := runtimeNow()"
	movedNow = now + "\n\tsec += atomic.LoadInt64(&moved)"

	// movedSource goes into the package time.
	movedSource = `package time

import _ "unsafe"

//go:linkname moved
var moved int64
`
)

// withClock adds what gives a service a package time whose clock can be moved:
// that of a process can't be. Timers, and the times that pass between two moments,
// do not move with it, as on a host whose clock is set.
func withClock(ctx context.Context, files map[string]string) error {
	root, err := output(ctx, "env", "GOROOT")
	if err != nil {
		return err
	}
	source := filepath.Join(root, "src", "time")
	text, err := os.ReadFile(filepath.Join(source, "time.go"))
	if err != nil {
		return err
	}
	changed := strings.Replace(string(text), now, movedNow, 1)
	changed = strings.Replace(changed, "import (\n", "import (\n\t\"sync/atomic\"\n", 1)
	if strings.Count(changed, "atomic") != 2 {
		return errors.New("the package time of this version of Go is not as expected")
	}
	files[filepath.Join(source, "time.go")] = changed
	files[filepath.Join(source, "moved.go")] = movedSource
	return nil
}

// clockMoved has a service live with a clock that is wrong by so much.
func clockMoved(by time.Duration) func(context.Context, *chaos) error {
	return func(ctx context.Context, c *chaos) error {
		p := c.fleet.take()
		if p == nil {
			return errNobody
		}
		defer c.fleet.put(p)
		if err := setClock(ctx, p, by); err != nil {
			return err
		}
		sleep(ctx, lasts())
		return setClock(ctx, p, 0)
	}
}

func setClock(ctx context.Context, p *process, by time.Duration) error {
	response, err := call(ctx, p.address, "/clock?by="+by.String(), nil)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d", response.StatusCode)
	}
	return errors.Join(err, response.Body.Close())
}

// serveClock is the other side of that.
func serveClock(w http.ResponseWriter, r *http.Request) {
	by, err := time.ParseDuration(r.FormValue("by"))
	if err != nil || moveClock == nil {
		http.Error(w, "can't move the clock", http.StatusBadRequest)
		return
	}
	moveClock(by)
}
