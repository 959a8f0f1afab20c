// The job of all queues in Node: fetch a mail's fields, sign them, and write the line or call SES.

import { createHmac } from "node:crypto";
import { writeSync } from "node:fs";
import { Agent } from "node:http";
import { setTimeout } from "node:timers/promises";

const actions = JSON.parse(process.env.MAILROOM_BENCH_ACTIONS);
const key = Buffer.from(process.env.MAILROOM_SECRET_KEY.split(",")[0], "hex");

export const url = process.env.MAILROOM_DATABASE_URL;
export const tuning = JSON.parse(process.env.MAILROOM_BENCH_TUNING ?? "{}");
export const QUEUE = "mail";

const quoted = (field) => (/[,"]/.test(field) ? `"${field.replaceAll('"', '""')}"` : field);

function sign([action, , , secret, code]) {
  const { prefix, needs_code } = actions[action];
  const signature = createHmac("sha256", key).update(prefix).update(secret);
  if (needs_code) signature.update(code);
  return Buffer.concat([secret, signature.digest()]).toString("base64url");
}

export function line(row) {
  const [action, email, login, , code] = row;
  return `${actions[action].number},${quoted(email)},${quoted(login)},${sign(row)},${code}\n`;
}

export const unpacked = ([action, email, login, secret, code]) => [action, email, login, Buffer.from(secret, "hex"), code];

// Performs jobs. `query` runs SQL with parameters, and returns rows as objects.
export async function performAll(jobs, query) {
  const tokens = jobs.filter((job) => !job.row).map((job) => job.token);
  const found = tokens.length ? await query(process.env.MAILROOM_BENCH_FETCH, [tokens]) : [];
  const rows = found.map(({ action, email, login, secret, code }) => [action, email, login, secret, code]);
  for (const job of jobs) if (job.row) rows.push(unpacked(job.row));
  await Promise.all(rows.map(deliver));
}

const deliver = process.env.MAILROOM_BENCH_JOB === "send" ? await sender() : (row) => void writeSync(1, line(row));

// Spaces calls evenly, since the queues limit no rate.
function limiter(perSecond) {
  let next = 0;
  return async () => {
    const now = performance.now();
    next = Math.max(next, now - 50) + 1000 / perSecond;
    if (next > now) await setTimeout(next - now);
  };
}

async function sender() {
  const { SESClient, SendTemplatedEmailCommand } = await import("@aws-sdk/client-ses");
  const client = new SESClient({
    endpoint: process.env.AWS_ENDPOINT_URL_SES,
    // The SDK opens 50 sockets unless told otherwise:
    // https://docs.aws.amazon.com/sdk-for-javascript/v3/developer-guide/node-configuring-maxsockets.html
    requestHandler: { httpAgent: new Agent({ keepAlive: true, maxSockets: 200 }) },
  });
  const allowed = limiter(Number(process.env.MAILROOM_BENCH_RATE));
  return async (row) => {
    const [action, email, login, , code] = row;
    const data = JSON.stringify({ login, secret: sign(row), code });
    await allowed();
    await client.send(
      new SendTemplatedEmailCommand({
        Source: process.env.MAILROOM_SES_SOURCE,
        Destination: { ToAddresses: [email] },
        Template: actions[action].template,
        TemplateData: data,
      }),
    );
  };
}
