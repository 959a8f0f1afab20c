// Prints the line of each row on standard input, for a test.

import { createInterface } from "node:readline";
import { line, unpacked } from "./job.mjs";

for await (const text of createInterface({ input: process.stdin })) process.stdout.write(line(unpacked(JSON.parse(text))));
