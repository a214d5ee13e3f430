-- Once, in the SQL editor, after the service has started for the first time.
CREATE EXTENSION IF NOT EXISTS pg_cron;
CREATE EXTENSION IF NOT EXISTS http WITH SCHEMA extensions; -- elsewhere than on Supabase, leave out WITH SCHEMA extensions

-- A worker for new jobs, one for failed ones: up to 20 at each tick. The token is one of Config.Tokens.
SELECT create_queue_worker('worker-default-1', 'https://app.example.com/api/jobs/run?limit=20', '123ABC', '* * * * *');
SELECT create_queue_worker('worker-failed-1', 'https://app.example.com/api/jobs/run?status=failed&limit=20', '123ABC', '* * * * *');

-- What pg_cron recorded, kept for a week.
SELECT cron.schedule('cleanup-cron-details', '0 0 * * *', $$ DELETE FROM cron.job_run_details WHERE end_time < now() - interval '7 days' $$);

SELECT * FROM scheduler.workers;
