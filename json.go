package scheduler

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// encodeJSON makes JSON text that Postgres takes as jsonb.
func encodeJSON(value any) (string, error) {
	var text []byte
	switch value := value.(type) {
	case nil:
		return "null", nil
	case json.RawMessage:
		text = value
	case []byte:
		text = value
	default:
		marshalled, err := json.Marshal(value)
		if err != nil {
			return "", fmt.Errorf("can't be marshalled as JSON: %w", err)
		}
		text = marshalled
	}
	if len(text) > mostPayload {
		return "", fmt.Errorf("has %d bytes: expected at most %d", len(text), mostPayload)
	}
	if err := checkJSON(text); err != nil {
		return "", err
	}
	return string(text), nil
}

// checkJSON refuses what is not JSON, and the strings that Go's idea of JSON
// allows but Postgres refuses in jsonb: NUL, halves of surrogate pairs and
// bytes that are not UTF-8. Found here, they do not abort the transaction.
func checkJSON(text []byte) error {
	if !json.Valid(text) {
		var discard any
		err := json.Unmarshal(text, &discard)
		if err == nil {
			err = errors.New("nested too deep")
		}
		return fmt.Errorf("%s: expected JSON: %w", shown(string(text)), err)
	}
	if !utf8.Valid(text) {
		return errors.New("expected UTF-8, got other bytes")
	}
	if err := checkNumbers(text); err != nil {
		return err
	}
	for i := 0; i < len(text); i++ {
		if text[i] != '\\' {
			continue
		}
		i++
		if text[i] != 'u' {
			continue
		}
		unit := hexUnit(text[i+1:])
		i += 4
		switch {
		case unit == 0:
			return errors.New(`has the character \u0000 in a string, which Postgres can't store`)
		case unit >= 0xDC00 && unit < 0xE000:
			return fmt.Errorf(`has \u%04x in a string: the second half of a surrogate pair without the first`, unit)
		case unit >= 0xD800 && unit < 0xDC00:
			rest := text[i+1:]
			if len(rest) < 6 || rest[0] != '\\' || rest[1] != 'u' || hexUnit(rest[2:])>>10 != 0xDC00>>10 {
				return fmt.Errorf(`has \u%04x in a string: the first half of a surrogate pair without the second`, unit)
			}
			i += 6
		}
	}
	return nil
}

// hexUnit reads four hexadecimal digits, which json.Valid has seen.
func hexUnit(text []byte) uint64 {
	unit, _ := strconv.ParseUint(string(text[:4]), 16, 16)
	return unit
}

// checkNumbers refuses numbers that are short here and long in Postgres, which
// stores and returns them written out: 1e131071 has as many digits, and a few
// thousand of those are more than it can return in one piece.
func checkNumbers(text []byte) error {
	written := len(text)
	inString := false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case !inString && (c == '-' || c >= '0' && c <= '9'):
			end := i + 1
			for end < len(text) && strings.IndexByte("0123456789+-.eE", text[end]) >= 0 {
				end++
			}
			number := string(text[i:end])
			if len(number) > mostExponent {
				return fmt.Errorf("has the number %s: expected at most %d digits", shown(number), mostExponent)
			}
			exponent, err := exponentOf(number)
			if err != nil || exponent > mostExponent {
				return fmt.Errorf("has the number %s: expected an exponent of at most %d", shown(number), mostExponent)
			}
			if written += exponent; written > mostPayload {
				return fmt.Errorf("has the number %s: expected at most %d bytes with all numbers written out", shown(number), mostPayload)
			}
			i = end - 1
		}
	}
	return nil
}

// mostExponent bounds the exponent of a number, up and down, and its digits;
// Postgres stores no more of them than that after the point.
const mostExponent = 16383

// exponentOf is how many digits a number has more when it is written out.
func exponentOf(number string) (int, error) {
	at := strings.IndexAny(number, "eE")
	if at < 0 {
		return 0, nil
	}
	exponent, err := strconv.Atoi(number[at+1:])
	return max(exponent, -exponent), err
}
