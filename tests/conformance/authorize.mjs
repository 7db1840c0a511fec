// Adds an Authorization header to every HTTP request of this Node process: `node --import ./authorize.mjs ...`.
// The conformance command line cannot send headers. A proxy would have to rewrite Host and Origin, which the
// DNS-rebinding scenarios are about; this way the server under test sees the suite's own bytes.
// `fetch` and the undici package announce requests on one channel, `node:http` on another.

import { subscribe } from "node:diagnostics_channel";

const authorization = process.env.CONFORMANCE_AUTHORIZATION;

subscribe("undici:request:create", ({ request }) => request.addHeader("authorization", authorization));
subscribe("http.client.request.created", ({ request }) => request.setHeader("authorization", authorization));
