// A client in JavaScript that knows the appliance by its .proto files only: it signs over one
// stream.
//
// node stream.mjs < request.json, with
//   {"address", "server_name", "ca", "cert", "key": file names, "include": [folders of
//    .proto files], "public_key": PEM file,
//    "requests": [{"key": a key's name, "format": number, "payload": base64}]}
// Every request is one message with its own tag and request id; answers come in any order.
// Signatures of FORMAT_MESSAGE are verified with node:crypto. Prints {"answers": [{"verified":
// bool} or {"failure": reason} or {"error": reason}], in the order of the requests, "end": code}.
import { createPublicKey, randomUUID, verify } from "node:crypto";
import { readFileSync } from "node:fs";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const MESSAGE = 2;
const asked = JSON.parse(readFileSync(0, "utf8"));
const definition = loader.loadSync(
  ["signer/v1/signing.proto", "google/rpc/error_details.proto"],
  { keepCase: true, longs: Number, defaults: true, oneofs: true, includeDirs: asked.include },
);
const { signer } = grpc.loadPackageDefinition(definition);
const errorInfo = definition["google.rpc.ErrorInfo"];
const publicKey = createPublicKey(readFileSync(asked.public_key));

const credentials = grpc.credentials.createSsl(
  readFileSync(asked.ca),
  readFileSync(asked.key),
  readFileSync(asked.cert),
);
const client = new signer.v1.SigningService(asked.address, credentials, {
  "grpc.ssl_target_name_override": asked.server_name,
});

function reason(status) {
  const info = status.details.find((each) => each.type_url.endsWith("/google.rpc.ErrorInfo"));
  return info ? errorInfo.deserialize(info.value).reason : status.message;
}

function read(response, request) {
  if (response.result === "error") return { error: reason(response.error) };
  const failure = response.batch.failures[0];
  if (failure) return { failure: reason(failure) };
  const payload = Buffer.from(request.payload, "base64");
  const key = { key: publicKey, dsaEncoding: "ieee-p1363" };
  const [signature] = response.batch.signatures;
  return {
    verified: request.format === MESSAGE && verify("sha256", payload, key, signature),
  };
}

const answers = new Array(asked.requests.length).fill(null);
let waiting = answers.length;
const stream = client.SignStream({ deadline: Date.now() + 60_000 });
stream.on("data", (response) => {
  answers[response.tag] = read(response, asked.requests[response.tag]);
  waiting -= 1;
  if (waiting === 0) stream.end();
});
stream.on("error", () => {}); // "status" comes as well, and says what it was
stream.on("status", ({ code }) => {
  console.log(JSON.stringify({ answers, end: grpc.status[code] }));
  client.close();
});

for (const [tag, request] of asked.requests.entries()) {
  const message = {
    tag,
    batch: {
      key: request.key,
      format: request.format,
      payloads: [Buffer.from(request.payload, "base64")],
      request_id: randomUUID(),
    },
    timeout: { seconds: 30 },
  };
  // The appliance reads no faster than it signs: wait until there is room.
  if (!stream.write(message)) await new Promise((resume) => stream.once("drain", resume));
}
