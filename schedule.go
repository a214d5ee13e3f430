package scheduler

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

// schedule is what the fields of a cron expression say, as the type schedule in
// SQL has it. Slots are computed there.
type schedule struct {
	minutes, hours, days, months, weekdays []int32
	eitherDay                              bool
}

// What the parser takes beside this, such as "*-5" for "*", is a mistake.
const (
	valuePattern = `([0-9]{1,2}|[A-Za-z]{3})`
	itemPattern  = `([*?]|` + valuePattern + `(-` + valuePattern + `)?)(/[0-9]{1,2})?`
	fieldPattern = itemPattern + `(,` + itemPattern + `)*`
)

var (
	schedulePattern = regexp.MustCompile(`^(@[a-z]+|` + fieldPattern + `([ \t\r\n\f\v]+` + fieldPattern + `){4})$`)
	scheduleParser  = cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor)
)

var (
	errSchedule = errors.New("expected five fields: minute (0-59), hour (0-23), day of the month (1-31), month (1-12 or jan-dec) and weekday " +
		"(0-6 from Sunday on, or sun-sat), each with *, ranges, steps and lists; or @hourly, @daily, @weekly, @monthly or @yearly")
	errEvery     = errors.New("@every would count from the start of some process: expected five fields such as */10 * * * *, or @hourly and the like")
	errZoneIn    = errors.New("expected the time zone in TimeZone, not in the schedule")
	errNoSuchDay = errors.New("expected one with a day that exists")
)

// parseSchedule reads a cron expression.
func parseSchedule(text string) (*schedule, error) {
	text = strings.Trim(text, " \t\r\n\f\v")
	switch {
	case strings.HasPrefix(text, "@every"):
		return nil, errEvery
	case strings.HasPrefix(text, "TZ=") || strings.HasPrefix(text, "CRON_TZ="):
		return nil, errZoneIn
	case !schedulePattern.MatchString(text):
		return nil, errSchedule
	}
	parsed, err := scheduleParser.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errSchedule)
	}
	spec, ok := parsed.(*cron.SpecSchedule)
	if !ok {
		return nil, errSchedule
	}
	if spec.Next(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)).IsZero() {
		return nil, errNoSuchDay
	}
	// The parser marks with its highest bit that a field has all there is.
	const all = 1 << 63
	return &schedule{
		minutes: bitsOf(spec.Minute), hours: bitsOf(spec.Hour), days: bitsOf(spec.Dom), months: bitsOf(spec.Month), weekdays: bitsOf(spec.Dow),
		eitherDay: (spec.Dom|spec.Dow)&all == 0,
	}, nil
}

// bitsOf are the values of a field, from its bits.
func bitsOf(field uint64) (values []int32) {
	for value := range int32(60) {
		if field>>value&1 == 1 {
			values = append(values, value)
		}
	}
	return values
}
