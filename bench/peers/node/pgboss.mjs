// Mailroom's job on pg-boss 10 and 12: `pgboss.mjs VERSION install` and `pgboss.mjs VERSION work`.
//
// Version 10 polls every half second, the least that it takes. Version 12 also listens, and fetches at once
// while its batches are full. The options are those of https://pgboss.io/api/workers and
// https://pgboss.io/api/constructor

import pg from "pg";
import { performAll, QUEUE, tuning, url } from "./job.mjs";

const [version, command] = process.argv.slice(2);
const PgBoss = version === "10" ? (await import("pg-boss-10")).default : (await import("pg-boss")).PgBoss;
const { batch = 1000, workers = 4 } = tuning;
// A job of a killed worker fails, and is retried, after expireInSeconds. The default is a quarter of an hour.
const queue = { name: QUEUE, expireInSeconds: 15, retryLimit: 5 };
const supervision =
  version === "10"
    ? { maintenanceIntervalSeconds: 5 }
    : { useListenNotify: true, superviseIntervalSeconds: 5, monitorIntervalSeconds: 5 };

const boss = new PgBoss({ connectionString: url, ...supervision });
boss.on("error", (error) => console.error(error));
await boss.start();

if (command === "install") {
  await boss.createQueue(QUEUE, version === "10" ? queue : { ...queue, notify: true });
  await boss.stop({ graceful: false });
} else {
  const pool = new pg.Pool({ connectionString: url, max: workers });
  const handle = (jobs) => performAll(jobs.map((job) => job.data), async (sql, values) => (await pool.query(sql, values)).rows);
  const polling = { batchSize: batch, pollingIntervalSeconds: 0.5 };
  if (version === "12") await boss.work(QUEUE, { ...polling, localConcurrency: workers, burstWhenBatchFull: true }, handle);
  else for (let number = 0; number < workers; number++) await boss.work(QUEUE, polling, handle);
  process.once("SIGTERM", async () => {
    await boss.stop({ timeout: 5000 });
    process.exit(0);
  });
}
