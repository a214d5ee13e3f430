package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestMain lets the tests start services, which are this program.
func TestMain(m *testing.M) {
	if number, ok := os.LookupEnv(serviceEnv); ok {
		exitOn(serve(number))
		return
	}
	os.Exit(m.Run())
}

// It takes some minutes, on a machine that has nothing else to do: make chaos-fences.
func TestTheHarmOfARemovedFenceIsFound(t *testing.T) {
	if os.Getenv("CHAOS_FENCES") == "" {
		t.Skip("CHAOS_FENCES is not set")
	}
	for name, f := range fences {
		t.Run(name, func(t *testing.T) {
			all, err := run(t.Context(), options{duration: 20 * time.Second, rate: 400, seed: 1, fence: name})
			require.NoError(t, err)
			i := slices.IndexFunc(all, func(one found) bool { return one.harm == f.harm })
			require.Positive(t, all[i].n, fmt.Sprint(all))
		})
	}
}

// So that those who change the SQL hear of it.
func TestEveryFenceIsThere(t *testing.T) {
	t.Parallel()
	paths, err := filepath.Glob("../sql/*.sql")
	require.NoError(t, err)
	var all strings.Builder
	for _, path := range paths {
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		all.Write(text)
	}
	for name, f := range fences {
		_, function, _ := strings.Cut(all.String(), "CREATE FUNCTION {{schema}}."+f.function+"(")
		function, _, _ = strings.Cut(function, "\n$$;")
		for edit := range slices.Chunk(f.edits, 2) {
			require.Contains(t, function, edit[0], name)
		}
	}
}
