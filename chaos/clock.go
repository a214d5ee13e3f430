package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// moveClock moves what time.Now tells in this process. It is nil in programs
// that buildService has not built.
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

// buildService builds this program once more, with a package time whose clock
// can be moved: that of a process can't be. Timers, and the times that pass
// between two moments, do not move with it, as on a host whose clock is set.
func buildService(ctx context.Context, directory string) (program string, err error) {
	root, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return "", err
	}
	source := filepath.Join(strings.TrimSpace(string(root)), "src", "time")
	text, err := os.ReadFile(filepath.Join(source, "time.go"))
	if err != nil {
		return "", err
	}
	changed := strings.Replace(string(text), now, movedNow, 1)
	changed = strings.Replace(changed, "import (\n", "import (\n\t\"sync/atomic\"\n", 1)
	if strings.Count(changed, "atomic") != 2 {
		return "", errors.New("the package time of this version of Go is not as expected")
	}
	paths := map[string]string{}
	for name, text := range map[string]string{"time.go": changed, "moved.go": movedSource} {
		path := filepath.Join(directory, name)
		paths[filepath.Join(source, name)] = path
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	overlay, err := json.Marshal(map[string]any{"Replace": paths})
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(directory, "overlay.json"), overlay, 0o600); err != nil {
		return "", err
	}
	program = filepath.Join(directory, "service")
	out, err := exec.CommandContext(ctx, "go", "build", "-overlay", filepath.Join(directory, "overlay.json"), "-tags", "movedclock", "-o", program, ".").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return program, nil
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
