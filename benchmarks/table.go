package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// results are the values by row and system, one of each round.
type results map[row]map[string][]float64

func (r results) add(system string, v values) {
	for row, value := range v {
		if r[row] == nil {
			r[row] = map[string][]float64{}
		}
		r[row][system] = append(r[row][system], value)
	}
}

// median is the one that counts; false if there was no measurement.
func (r results) median(row row, system string) (value float64, ok bool) {
	sorted := slices.Sorted(slices.Values(r[row][system]))
	n := len(sorted)
	if n == 0 {
		return 0, false
	}
	return (sorted[(n-1)/2] + sorted[n/2]) / 2, true
}

// print writes the results as a table in Markdown.
func (r results) print(w io.Writer) error {
	columns := r.systems()
	head := append([]string{"figure"}, columns...)
	for _, name := range columns {
		if name != ours {
			head = append(head, ours+" ÷ "+name)
		}
	}
	lines := [][]string{append(head, "to be reached")}
	for _, row := range rows {
		if r[row.row] == nil {
			continue
		}
		line := []string{row.title}
		for _, name := range columns {
			line = append(line, r.cell(row.row, name, row.digits))
		}
		for _, name := range columns {
			if name != ours {
				line = append(line, r.ratio(row.row, name))
			}
		}
		lines = append(lines, append(line, r.floors(row.row)))
	}
	return printMarkdown(w, lines)
}

// systems are those that were measured, in their order.
func (r results) systems() []string {
	var names []string
	for _, s := range systems {
		for _, row := range r {
			if _, ok := row[s.name]; ok {
				names = append(names, s.name)
				break
			}
		}
	}
	return names
}

func (r results) cell(row row, system string, digits int) string {
	value, ok := r.median(row, system)
	if !ok {
		return ""
	}
	return number(value, digits)
}

func (r results) ratio(row row, system string) string {
	value, ok := r.median(row, ours)
	other, also := r.median(row, system)
	if !ok || !also || other == 0 {
		return ""
	}
	return number(value/other, 2)
}

func (r results) floors(row row) string {
	var all []string
	for _, f := range floors {
		if f.row == row {
			if text := r.floor(f); text != "" {
				all = append(all, text)
			}
		}
	}
	return strings.Join(all, "; ")
}

// floor tells a floor and whether it is reached; "" if it was not measured.
func (r results) floor(f floor) string {
	value, ok := r.median(f.row, ours)
	unit := ""
	if f.system != "" || f.against != "" {
		system, row := ours, f.row
		unit = " × the drain above"
		if f.system != "" {
			system, unit = f.system, " × "+f.system
		} else {
			row = f.against
		}
		other, _ := r.median(row, system)
		ok = ok && other != 0
		value /= other
	}
	if !ok {
		return ""
	}
	bound, reached := "≥ ", value >= f.limit
	if f.most {
		bound, reached = "≤ ", value <= f.limit
	}
	verdict := "reached"
	if !reached {
		verdict = "NOT reached"
	}
	if unit == " × the drain above" {
		verdict += " (" + number(value, 2) + ")"
	}
	return bound + strconv.FormatFloat(f.limit, 'f', -1, 64) + unit + ": " + verdict
}

// number writes 12345.678 as 12,345.68 (with two digits).
func number(value float64, digits int) string {
	if value < 0 {
		return "-" + number(-value, digits)
	}
	whole, fraction, _ := strings.Cut(strconv.FormatFloat(value, 'f', digits, 64), ".")
	for i := len(whole) - 3; i > 0; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	if fraction == "" {
		return whole
	}
	return whole + "." + fraction
}

// printMarkdown pads the cells, so that the table can be read as it is. The
// first line is its head; numbers stand to the right.
func printMarkdown(w io.Writer, lines [][]string) error {
	widths := make([]int, len(lines[0]))
	for _, line := range lines {
		for i, cell := range line {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell), 3)
		}
	}
	last := len(widths) - 1
	rule := make([]string, len(widths))
	for i, width := range widths {
		rule[i] = strings.Repeat("-", width)
		if i > 0 && i < last {
			rule[i] = rule[i][1:] + ":"
		}
	}
	for _, line := range append([][]string{lines[0], rule}, lines[1:]...) {
		for i, cell := range line {
			padding := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if i == 0 || i == last {
				cell += padding
			} else {
				cell = padding + cell
			}
			if _, err := fmt.Fprintf(w, "| %s ", cell); err != nil {
				return err
			}
		}
		if _, err := fmt.Fprintln(w, "|"); err != nil {
			return err
		}
	}
	return nil
}
