// A client in another language that knows the appliance by its .proto files only.
//
// node client.mjs < request.json, with
//   {"address", "server_name", "ca", "cert", "key": file names, "include": [folders of
//    .proto files], "resource": a key's name, "format": "FORMAT_...", "payloads": [base64]}
// Prints the answer as JSON, or {"error": {code, details, reason}}.
import { readFileSync } from "node:fs";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const options = { keepCase: true, longs: Number, enums: String, defaults: true };
const asked = JSON.parse(readFileSync(0, "utf8"));

const definition = loader.loadSync(
  ["signer/v1/signing.proto", "google/rpc/error_details.proto"],
  { ...options, includeDirs: asked.include },
);
const { signer } = grpc.loadPackageDefinition(definition);

const credentials = grpc.credentials.createSsl(
  readFileSync(asked.ca),
  readFileSync(asked.key),
  readFileSync(asked.cert),
);
const client = new signer.v1.SigningService(asked.address, credentials, {
  "grpc.ssl_target_name_override": asked.server_name,
});

// The rich status is a google.rpc.Status in a trailer; its ErrorInfo has the reason.
function reasonOf(error) {
  const [trailer] = error.metadata.get("grpc-status-details-bin");
  if (!trailer) return null;
  const status = definition["google.rpc.Status"];
  const info = definition["google.rpc.ErrorInfo"];
  const read = (type, bytes) => type.deserialize ? type.deserialize(bytes) : null;
  for (const detail of read(status, trailer)?.details ?? []) {
    if (detail.type_url?.endsWith("google.rpc.ErrorInfo")) return read(info, detail.value).reason;
  }
  return null;
}

const request = {
  key: asked.resource,
  format: asked.format,
  payloads: asked.payloads.map((payload) => Buffer.from(payload, "base64")),
};
client.SignBatch(request, { deadline: Date.now() + 30_000 }, (error, answer) => {
  const said = error
    ? { error: { code: grpc.status[error.code], details: error.details, reason: reasonOf(error) } }
    : { ...answer, signatures: answer.signatures.map((bytes) => bytes.toString("base64")) };
  console.log(JSON.stringify(said));
  client.close();
});
