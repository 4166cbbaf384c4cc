// Verifies COSE_Sign1 messages and HC1 texts with @auth0/cose; shares no code with the appliance.
//
// Usage: node verify_cose.mjs KEY.pem ALGORITHM < messages (one a line; COSE_Sign1 in Base64).
// KEY.pem is a public key, or the certificate that the key id is of. Prints one JSON object a line:
// the payload in Base64, of an HC1 text also its DCC, or why the message is `refused`. Ends with
// status 1 if one was.
import { Algorithms, Headers, Sign1 } from "@auth0/cose";
import { createHash, createPublicKey, X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { inflateSync } from "node:zlib";
import { Decoder } from "cbor-x";
import { judgeLines } from "./verdicts.mjs";

const BASE45 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ $%*+-./:";
const [, , file, name] = process.argv;
const pem = readFileSync(file, "utf8");
const key = createPublicKey(pem); // of a certificate: its public key
const named = pem.includes("CERTIFICATE")
  ? new X509Certificate(pem).raw
  : key.export({ type: "spki", format: "der" });
const kid = createHash("sha256").update(named).digest().subarray(0, 8);
const algorithm = Algorithms[name];
const claims = new Decoder({ mapsAsObjects: false });

/** RFC 9285 section 4. */
function fromBase45(text) {
  const bytes = [];
  for (let at = 0; at < text.length; at += 3) {
    const digits = [...text.slice(at, at + 3)].map((each) => BASE45.indexOf(each));
    const number = digits.reduce((sum, digit, place) => sum + digit * 45 ** place, 0);
    const length = digits.length - 1;
    if (digits.includes(-1) || !length || number >= 256 ** length) throw new Error("no Base45");
    if (length === 2) bytes.push(number >> 8);
    bytes.push(number & 0xff);
  }
  return Buffer.from(bytes);
}

/** The value as JSON has it: objects in place of maps, numbers up to 2^53. */
function plain(value) {
  if (typeof value === "bigint") return Number(value);
  if (value instanceof Map)
    return Object.fromEntries([...value].map(([name, each]) => [name, plain(each)]));
  return Array.isArray(value) ? value.map(plain) : value;
}

await judgeLines(async (line) => {
  const certificate = line.startsWith("HC1:");
  const message = Sign1.decode(
    certificate ? inflateSync(fromBase45(line.slice(4))) : Buffer.from(line, "base64"),
  );
  await message.verify(key, { algorithms: [algorithm] });
  const header = message.protectedHeaders;
  if (!kid.equals(Buffer.from(header.get(Headers.KeyID)))) throw new Error("another key id");
  const payload = Buffer.from(message.payload);
  const verdict = { payload: payload.toString("base64") };
  return certificate ? { ...verdict, dcc: plain(claims.decode(payload).get(-260).get(1)) } : verdict;
});
