// Verifies SMART Health Cards with kill-the-clipboard; shares no code with the appliance.
//
// Usage: node verify_card.mjs JWKS.json < cards (one a line). Prints one JSON object a line: the
// FHIR bundle that was verified, or why the card is `refused`. Ends with status 1 if one was.
import { readFileSync } from "node:fs";
import { SHCReader } from "kill-the-clipboard";
import { judgeLines } from "./verdicts.mjs";

const { keys } = JSON.parse(readFileSync(process.argv[2], "utf8"));

/** The key that the card's header names, from the issuer's JWK Set. */
function keyOf(card) {
  const digits = card.slice("shc:/".length).match(/\d\d/g) ?? [];
  const jws = digits.map((pair) => String.fromCharCode(Number(pair) + 45)).join("");
  const { kid } = JSON.parse(Buffer.from(jws.split(".")[0], "base64url").toString());
  return keys.find((key) => key.kid === kid);
}

await judgeLines(async (card) => {
  const verified = await new SHCReader({ publicKey: keyOf(card) }).fromQRNumeric(card);
  return { bundle: await verified.asBundle(), jws: verified.asJWS() };
});
