package main

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"text/tabwriter"
	"time"
)

// start is what all printed times are relative to.
var start = time.Now()

func sinceStart(at time.Time) string { return fmt.Sprintf("%.1f s", at.Sub(start).Seconds()) }

// screen takes one line at a time from the many goroutines of a service.
var screen struct {
	sync.Mutex
	countdown string // the line that stands at the bottom of a terminal
}

var isTerminal = func() bool {
	stat, err := os.Stdout.Stat()
	return err == nil && stat.Mode()&os.ModeCharDevice != 0
}()

// say prints a line.
func say(format string, args ...any) {
	screen.Lock()
	defer screen.Unlock()
	if screen.countdown != "" {
		fmt.Print("\r\033[K")
	}
	fmt.Printf(format+"\n", args...)
	fmt.Print(screen.countdown)
}

func heading(format string, args ...any) { say("\n"+format+"\n", args...) }

// tell prints what happens to a job, when it happens.
func tell(job, what string, args ...any) {
	say("  %8s   %-24s %s", sinceStart(time.Now()), job, fmt.Sprintf(what, args...))
}

// countDown shows the seconds that are left until something happens: on a
// terminal in one line, which "" removes; elsewhere every ten seconds.
func countDown(what string, left time.Duration) {
	seconds := int(left.Seconds())
	line := fmt.Sprintf("  %8s   %-24s %d s", "", what, seconds)
	if !isTerminal {
		if what != "" && seconds > 0 && seconds%10 == 0 {
			say("%s", line)
		}
		return
	}
	screen.Lock()
	defer screen.Unlock()
	screen.countdown = line
	if what == "" {
		screen.countdown = ""
	}
	fmt.Print("\r\033[K" + screen.countdown)
}

// table prints rows in columns.
func table(rows [][]string) {
	var text strings.Builder
	writer := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		_, _ = fmt.Fprintln(writer, "  "+strings.Join(row, "\t")) // a Builder takes everything
	}
	_ = writer.Flush()
	for line := range strings.Lines(text.String()) {
		say("%s", strings.TrimRight(line, " \n"))
	}
}
