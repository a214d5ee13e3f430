package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// build builds the services that need others than this program.
func (f *fleet) build(ctx context.Context, directory string, o options) error {
	if o.fence != "" {
		return nil // seconds, for one kind of harm
	}
	files := map[string]string{}
	if o.soak == 0 && o.duration >= clocksFrom {
		if err := withClock(ctx, files); err != nil {
			return err
		}
		f.clocks, f.program = true, filepath.Join(directory, "service")
		if err := f.buildService(ctx, f.program, files); err != nil {
			return err
		}
	}
	if err := withNewerLibrary(ctx, files); err != nil {
		return err
	}
	f.newer = filepath.Join(directory, "newer")
	return f.buildService(ctx, f.newer, files)
}

// buildService builds this program once more, with files of its packages replaced
// or added (paths to texts).
func (f *fleet) buildService(ctx context.Context, program string, files map[string]string) error {
	paths := map[string]string{}
	for path, text := range files {
		replacement := fmt.Sprintf("%s.%d.%s", program, len(paths), filepath.Base(path))
		if err := os.WriteFile(replacement, []byte(text), 0o600); err != nil {
			return err
		}
		paths[path] = replacement
	}
	overlay, err := json.Marshal(map[string]any{"Replace": paths})
	if err != nil {
		return err
	}
	if err := os.WriteFile(program+".json", overlay, 0o600); err != nil {
		return err
	}
	args := []string{"build", "-overlay", program + ".json", "-o", program}
	if f.clocks {
		args = append(args, "-tags", "movedclock")
	}
	if out, err := exec.CommandContext(ctx, "go", append(args, ".")...).CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
}

// output is what a go command prints.
func output(ctx context.Context, args ...string) (string, error) {
	command := exec.CommandContext(ctx, "go", args...)
	command.Stderr = os.Stderr
	out, err := command.Output()
	return strings.TrimSpace(string(out)), err
}
