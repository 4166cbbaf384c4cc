// Verifies compact JWS with jose; shares no code with the appliance.
//
// Usage: node verify_jws.mjs PUBLIC_KEY.pem ALGORITHM < tokens (one a line). Prints one JSON object
// a line: header and payload that were verified, or why the token is `refused`. Ends with status 1
// if one was.
import { readFileSync } from "node:fs";
import { calculateJwkThumbprint, compactVerify, exportJWK, importSPKI } from "jose";
import { judgeLines } from "./verdicts.mjs";

const [, , file, algorithm] = process.argv;
const key = await importSPKI(readFileSync(file, "utf8"), algorithm, { extractable: true });
const kid = await calculateJwkThumbprint(await exportJWK(key));

await judgeLines(async (token) => {
  const verified = await compactVerify(token, key, { algorithms: [algorithm] });
  const header = verified.protectedHeader;
  if (header.kid !== kid) throw new Error("the kid is not the key's thumbprint (RFC 7638)");
  return { header, payload: Buffer.from(verified.payload).toString() };
});
