package scheduler_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// readmeBlock is the first block of the README in this language that begins
// with these words.
func readmeBlock(t *testing.T, language, beginning string) string {
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	for _, block := range regexp.MustCompile("(?s)```"+language+"\n(.*?)```").FindAllStringSubmatch(string(readme), -1) {
		if strings.HasPrefix(block[1], beginning) {
			return block[1]
		}
	}
	require.FailNow(t, "no such block", "%s: %s", language, beginning)
	return ""
}

// What the README shows is what examples/supabase is, which is compiled.
func TestTheReadmeShowsTheExample(t *testing.T) {
	t.Parallel()
	main, err := os.ReadFile("examples/supabase/main.go")
	require.NoError(t, err)
	_, program, found := strings.Cut(string(main), "\npackage main\n") // after its comment
	require.True(t, found)
	block := readmeBlock(t, "go", "package main")
	require.Equal(t, "package main\n"+program, block)
	require.LessOrEqual(t, strings.Count(block, "\n"), 40)

	workers, err := os.ReadFile("examples/supabase/workers.sql")
	require.NoError(t, err)
	require.Equal(t, string(workers), readmeBlock(t, "sql", "-- Once"))
}
