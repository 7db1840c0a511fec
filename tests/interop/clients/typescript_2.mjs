// The official TypeScript SDK, 2.x line: the 2025 handshake, or 2026-07-28 and nothing else.

import { answer, identity, job, load, report, transport } from "./typescript_report.mjs";

const { Client, StreamableHTTPClientTransport } = load("@modelcontextprotocol/client");
const { StdioClientTransport } = load("@modelcontextprotocol/client/stdio");

const mode = job.era === "modern" ? { pin: "2026-07-28" } : "legacy";
const client = new Client(identity, { capabilities: { elicitation: {} }, versionNegotiation: { mode } });
client.setRequestHandler("elicitation/create", answer);
await client.connect(transport(StreamableHTTPClientTransport, StdioClientTransport));
await report(client, (name, args, onprogress) => client.callTool({ name, arguments: args }, { onprogress }));
