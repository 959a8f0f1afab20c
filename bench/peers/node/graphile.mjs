// Mailroom's job on graphile-worker. `install` migrates the database, `work` is the worker.
// The options are those of https://worker.graphile.org/docs/performance

import { Logger, run, runMigrations } from "graphile-worker";
import { performAll, QUEUE, tuning, url } from "./job.mjs";

if (process.argv[2] === "install") {
  await runMigrations({ connectionString: url });
} else {
  const { concurrency = 24, size = 500, delay = 250 } = tuning;
  const runner = await run({
    preset: {
      worker: {
        connectionString: url,
        concurrentJobs: concurrency,
        maxPoolSize: Math.min(concurrency, 24) + 1,
        localQueue: { size },
        completeJobBatchDelay: delay,
        failJobBatchDelay: delay,
      },
    },
    logger: new Logger(() => (level, message) => level === "error" && console.error(message)),
    taskList: {
      [QUEUE]: (job, helpers) => performAll([job], async (sql, values) => (await helpers.query(sql, values)).rows),
    },
  });
  await runner.promise;
}
