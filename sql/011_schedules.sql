-- Schedules of five cron fields, and the moments that they mean in a time zone.

-- What the fields of a schedule say, in ascending order. Weekdays are 0 (Sunday)
-- to 6.
CREATE TYPE {{schema}}.schedule AS (
    minutes integer[], hours integer[], days integer[], months integer[], weekdays integer[],
    either_day boolean -- a right day of the month or a right weekday is enough; else both have to be right
);

-- Reads a schedule as the Go library's parser does (github.com/robfig/cron).
CREATE FUNCTION {{schema}}.parse_schedule(schedule text) RETURNS {{schema}}.schedule
LANGUAGE plpgsql IMMUTABLE SET search_path = '' AS $$
DECLARE
    c_all_days CONSTANT text := '(^|,)[*?](/0?1)?(,|$)';
    v_text   text := btrim(parse_schedule.schedule, E' \t\r\n\f\x0b');
    v_fields text[];
    v_parsed {{schema}}.schedule;
BEGIN
    v_fields := regexp_split_to_array(CASE v_text
        WHEN '@yearly' THEN '0 0 1 1 *' WHEN '@annually' THEN '0 0 1 1 *' WHEN '@monthly' THEN '0 0 1 * *' WHEN '@weekly' THEN '0 0 * * 0'
        WHEN '@daily' THEN '0 0 * * *' WHEN '@midnight' THEN '0 0 * * *' WHEN '@hourly' THEN '0 * * * *' ELSE v_text END, '[ \t\r\n\f\v]+');
    IF cardinality(v_fields) IS DISTINCT FROM 5 THEN
        RAISE EXCEPTION 'create_recurring_job: schedule %: expected five fields such as ''30 3 * * mon-fri'', or @hourly, @daily, @weekly, @monthly or @yearly',
            {{schema}}.shown(parse_schedule.schedule) USING ERRCODE = 'invalid_parameter_value';
    END IF;
    v_parsed.minutes := {{schema}}.parse_schedule_field('minute', v_fields[1], 0, 59, '{}');
    v_parsed.hours := {{schema}}.parse_schedule_field('hour', v_fields[2], 0, 23, '{}');
    v_parsed.days := {{schema}}.parse_schedule_field('day of the month', v_fields[3], 1, 31, '{}');
    v_parsed.months := {{schema}}.parse_schedule_field('month', v_fields[4], 1, 12, '{jan,feb,mar,apr,may,jun,jul,aug,sep,oct,nov,dec}');
    v_parsed.weekdays := {{schema}}.parse_schedule_field('weekday', v_fields[5], 0, 6, '{sun,mon,tue,wed,thu,fri,sat}');
    v_parsed.either_day := v_fields[3] !~ c_all_days AND v_fields[5] !~ c_all_days;
    IF {{schema}}.next_slot(v_parsed, 'UTC', '2000-01-01 00:00:00+00') IS NULL THEN
        RAISE EXCEPTION 'create_recurring_job: schedule %: expected one with a day that exists', {{schema}}.shown(parse_schedule.schedule)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN v_parsed;
END
$$;

-- The values of one field: a list of *, ?, a value or a range, each with a step
-- or without one. names are those of the values from lowest on.
CREATE FUNCTION {{schema}}.parse_schedule_field(title text, field text, lowest integer, highest integer, names text[]) RETURNS integer[]
LANGUAGE plpgsql IMMUTABLE SET search_path = '' AS $$
DECLARE
    v_item   text;
    v_parts  text[];
    v_first  integer;
    v_last   integer;
    v_step   integer;
    v_values integer[] := '{}';
BEGIN
    FOREACH v_item IN ARRAY string_to_array(lower(parse_schedule_field.field COLLATE "C"), ',') LOOP
        v_parts := regexp_match(v_item, '^(?:[*?]|([0-9]{1,2}|[a-z]{3})(?:-([0-9]{1,2}|[a-z]{3}))?)(?:/([0-9]{1,2}))?$');
        v_first := CASE WHEN v_parts[1] IS NULL THEN lowest ELSE {{schema}}.schedule_value(v_parts[1], lowest, names) END;
        v_last := CASE WHEN v_parts[2] IS NOT NULL THEN {{schema}}.schedule_value(v_parts[2], lowest, names)
            WHEN v_parts[1] IS NULL OR v_parts[3] IS NOT NULL THEN highest ELSE v_first END;
        v_step := coalesce(v_parts[3]::integer, 1);
        IF (v_parts IS NOT NULL AND lowest <= v_first AND v_first <= v_last AND v_last <= highest AND v_step > 0) IS NOT TRUE THEN
            RAISE EXCEPTION 'create_recurring_job: schedule has the % %: expected % or *, a range such as %-%, a step such as */2, or a list of these',
                title, {{schema}}.shown(field),
                lowest || ' to ' || highest || coalesce(', ' || names[1] || ' to ' || names[cardinality(names)], ''), lowest, lowest + 2
                USING ERRCODE = 'invalid_parameter_value';
        END IF;
        v_values := v_values || ARRAY(SELECT generate_series(v_first, v_last, v_step));
    END LOOP;
    RETURN ARRAY(SELECT DISTINCT v FROM unnest(v_values) AS v ORDER BY v);
END
$$;

-- NULL: there is no such name.
CREATE FUNCTION {{schema}}.schedule_value(value text, lowest integer, names text[]) RETURNS integer
LANGUAGE sql IMMUTABLE SET search_path = '' AS $$
    SELECT CASE WHEN value ~ '^[0-9]+$' THEN value::integer ELSE array_position(names, value) - 1 + lowest END
$$;

-- The first slot of a schedule after a moment; NULL if there is none in nine
-- years (from one 29 February to the next there may be eight).
--
-- A slot is the moment at which clocks in the time zone show what the schedule
-- says. When they are moved forward, what they skip comes as much later as they
-- were moved; when they are moved back, what they show twice is the first of the
-- two moments. So a schedule of certain hours comes once a day on those days
-- too. One of every hour goes by what clocks show, minute by minute: it comes on
-- each hour that there is, as it does with robfig/cron.
--
-- The search begins a day early, and looks a day further than the first day
-- with a slot, because what is skipped may move across midnight.
CREATE FUNCTION {{schema}}.next_slot(s {{schema}}.schedule, time_zone text, after timestamptz) RETURNS timestamptz
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
DECLARE
    v_day  date := (next_slot.after AT TIME ZONE next_slot.time_zone)::date - 1;
    v_last date := v_day + 9 * 366;
    v_slot timestamptz;
BEGIN
    WHILE v_day <= v_last LOOP
        IF extract(month FROM v_day)::integer = ANY (s.months) THEN
            v_slot := {{schema}}.first_slot_of_day(s, next_slot.time_zone, v_day, next_slot.after);
            IF v_slot IS NOT NULL THEN
                RETURN least(v_slot, {{schema}}.first_slot_of_day(s, next_slot.time_zone, v_day + 1, next_slot.after));
            END IF;
            v_day := v_day + 1;
        ELSE
            v_day := (date_trunc('month', v_day::timestamp) + interval '1 month')::date;
        END IF;
    END LOOP;
    RETURN NULL;
END
$$;

-- The first slot of a day after a moment; NULL if the day has none.
CREATE FUNCTION {{schema}}.first_slot_of_day(s {{schema}}.schedule, time_zone text, day date, after timestamptz) RETURNS timestamptz
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
DECLARE
    v_right_day     boolean := extract(day FROM day)::integer = ANY (s.days);
    v_right_weekday boolean := extract(dow FROM day)::integer = ANY (s.weekdays);
    v_begin  timestamptz;
    v_end    timestamptz;
    v_minute integer; -- of the day: the first that is late enough
BEGIN
    IF extract(month FROM day)::integer <> ALL (s.months)
        OR NOT (s.either_day AND (v_right_day OR v_right_weekday) OR v_right_day AND v_right_weekday)
    THEN
        RETURN NULL;
    END IF;
    v_begin := {{schema}}.moment_of(day, first_slot_of_day.time_zone);
    v_end := {{schema}}.moment_of(day + 1, first_slot_of_day.time_zone);
    IF v_end - v_begin = interval '24 hours' THEN
        v_minute := greatest(0, floor(extract(epoch FROM first_slot_of_day.after - v_begin) / 60) + 1);
        RETURN v_begin + interval '1 minute' * least(
            (SELECT v_minute / 60 * 60 + min(m) FROM unnest(s.minutes) AS m WHERE m >= v_minute % 60 AND v_minute / 60 = ANY (s.hours)),
            (SELECT 60 * min(h) + s.minutes[1] FROM unnest(s.hours) AS h WHERE h > v_minute / 60));
    END IF;
    -- Clocks are moved.
    IF cardinality(s.hours) = 24 THEN
        RETURN (SELECT min(t) FROM generate_series(v_begin, v_end - interval '1 minute', interval '1 minute') AS t
            WHERE t > first_slot_of_day.after AND extract(minute FROM t AT TIME ZONE first_slot_of_day.time_zone)::integer = ANY (s.minutes));
    END IF;
    RETURN (SELECT min(t) FROM unnest(s.hours) AS h, unnest(s.minutes) AS m,
            {{schema}}.moment_of(day + make_interval(hours => h, mins => m), first_slot_of_day.time_zone) AS t
        WHERE t > first_slot_of_day.after);
END
$$;

-- The moment at which clocks in a time zone show this. Postgres takes what is
-- skipped as if clocks had not been moved yet, and of two moments the second.
CREATE FUNCTION {{schema}}.moment_of(shown timestamp, time_zone text) RETURNS timestamptz
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
DECLARE
    v_moment timestamptz := moment_of.shown AT TIME ZONE moment_of.time_zone;
    v_before timestamptz := v_moment - interval '24 hours';
    v_first  timestamptz; -- if clocks went as they did the day before
BEGIN
    v_first := (moment_of.shown - (v_before AT TIME ZONE moment_of.time_zone - v_before AT TIME ZONE 'UTC')) AT TIME ZONE 'UTC';
    IF v_first < v_moment AND v_first AT TIME ZONE moment_of.time_zone = moment_of.shown THEN
        RETURN v_first;
    END IF;
    RETURN v_moment;
END
$$;

-- The last slot that is not after a moment, from one on that is not.
CREATE FUNCTION {{schema}}.last_slot(s {{schema}}.schedule, time_zone text, slot timestamptz, until timestamptz) RETURNS timestamptz
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
DECLARE
    v_last  timestamptz := last_slot.slot;
    v_until timestamptz := last_slot.until; -- after this, there is none
    v_next  timestamptz;
BEGIN
    WHILE v_until - v_last >= interval '1 minute' LOOP
        v_next := {{schema}}.next_slot(s, last_slot.time_zone, v_last + (v_until - v_last) / 2);
        IF v_next <= v_until THEN
            v_last := v_next;
        ELSE
            v_until := v_last + (v_until - v_last) / 2;
        END IF;
    END LOOP;
    RETURN v_last;
END
$$;
