// What the programs that verify have in common: one message a line, one JSON object a line.
import { createInterface } from "node:readline";

/** Prints what `verify` says of each line of the input, or why it is `refused`. */
export async function judgeLines(verify) {
  for await (const line of createInterface({ input: process.stdin })) {
    let verdict;
    try {
      verdict = await verify(line);
    } catch (error) {
      verdict = { refused: `${error.name}: ${error.message}` };
      process.exitCode = 1;
    }
    process.stdout.write(`${JSON.stringify(verdict)}\n`);
  }
}
