package main

import (
	"fmt"
	"io"
	"slices"
	"time"
)

// What may come on top from the first moment to the last, of the service that
// lasts. What is lost with each job, or with each hundredth one, is more than that
// after a million.
const (
	moreGoroutines = 20
	moreHeap       = 8 << 20
	moreRSS        = 64 << 20
)

// notLevel finds what has grown without bound. The table and its indexes grow to
// their size, which is that of what comes and goes between two vacuums, and swing
// there. What grows with each job is 10/7 as large in the last third as ever before.
func notLevel(moments []moment) (faults []string) {
	most := func(of []moment, size func(moment) int64) int64 {
		return size(slices.MaxFunc(of, func(a, b moment) int { return int(size(a) - size(b)) }))
	}
	for what, size := range map[string]func(moment) int64{
		"the table has": func(m moment) int64 { return m.table }, "its indexes have": func(m moment) int64 { return m.indexes },
	} {
		before, after := most(moments[:max(1, 2*len(moments)/3)], size), most(moments, size)
		if after > before*7/5 {
			faults = append(faults, fmt.Sprintf("%s %s, after %s", what, mebibytes(after), mebibytes(before)))
		}
	}
	first, last := lasting(moments[0]), lasting(moments[len(moments)-1])
	if last.Goroutines > first.Goroutines+moreGoroutines {
		faults = append(faults, fmt.Sprintf("service %d has %d goroutines, after %d", last.Number, last.Goroutines, first.Goroutines))
	}
	if last.Heap > first.Heap+moreHeap {
		faults = append(faults, fmt.Sprintf("service %d has a heap of %s, after %s", last.Number, mebibytes(last.Heap), mebibytes(first.Heap)))
	}
	if last.RSS > first.RSS+moreRSS {
		faults = append(faults, fmt.Sprintf("service %d has %s of memory, after %s", last.Number, mebibytes(last.RSS), mebibytes(first.RSS)))
	}
	return faults
}

// lasting is the service that no fault ends.
func lasting(m moment) vitals {
	return m.services[slices.IndexFunc(m.services, func(v vitals) bool { return v.Lasts })]
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// printLevel writes what was looked at, a line for each moment and service.
func printLevel(w io.Writer, moments []moment) {
	fmt.Fprintln(w, "| jobs created | deleted | rows | dead rows | table | free in it | its indexes |\n| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
	for _, m := range moments {
		fmt.Fprintf(w, "| %d | %d | %d | %d | %s | %s | %s |\n", m.created, m.discarded, m.live, m.dead, mebibytes(m.table), mebibytes(m.free), mebibytes(m.indexes))
	}
	fmt.Fprintln(w, "\n| jobs created | service | age | goroutines | heap in use | memory (RSS) |\n| ---: | --- | ---: | ---: | ---: | ---: |")
	for _, m := range moments {
		for _, v := range m.services {
			name := fmt.Sprint(v.Number)
			if v.Lasts {
				name = "**" + name + "**"
			}
			fmt.Fprintf(w, "| %d | %s | %s | %d | %s | %s |\n", m.created, name, v.Age.Round(time.Second), v.Goroutines, mebibytes(v.Heap), mebibytes(v.RSS))
		}
	}
	fmt.Fprintln(w)
}
