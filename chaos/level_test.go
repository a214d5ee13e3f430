package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWhatIsNotLevel(t *testing.T) {
	t.Parallel()
	for fault, grow := range map[string]func(moments []moment){
		"":                             func([]moment) {},
		"the table has 7.0 MiB":        func(m []moment) { m[4].table = 7 << 20 },
		"its indexes have 4.0 MiB":     func(m []moment) { m[4].indexes = 4 << 20 },
		"service 3 has 31 goroutines":  func(m []moment) { m[4].services[1].Goroutines = 31 },
		"service 3 has a heap of 12.0": func(m []moment) { m[4].services[1].Heap = 12 << 20 },
		"service 3 has 90.0 MiB":       func(m []moment) { m[4].services[1].RSS = 90 << 20 },
	} {
		moments := make([]moment, 5)
		for i := range moments {
			moments[i] = moment{table: 4 << 20, indexes: 2 << 20, services: []vitals{
				{Number: 7 + i, Goroutines: 100 * i, Heap: int64(i) << 30},
				{Number: 3, Lasts: true, Goroutines: 10, Heap: 3 << 20, RSS: 20 << 20},
			}}
		}
		grow(moments)
		require.Contains(t, strings.Join(notLevel(moments), "\n"), fault)
		require.Equal(t, fault != "", len(notLevel(moments)) == 1)
	}
}
