// The official TypeScript SDK, 1.x line: the 2025 handshake only.

import { answer, identity, load, report, transport } from "./typescript_report.mjs";

const { Client } = load("@modelcontextprotocol/sdk/client/index.js");
const { StreamableHTTPClientTransport } = load("@modelcontextprotocol/sdk/client/streamableHttp.js");
const { StdioClientTransport } = load("@modelcontextprotocol/sdk/client/stdio.js");
const { ElicitRequestSchema } = load("@modelcontextprotocol/sdk/types.js");

const client = new Client(identity, { capabilities: { elicitation: {} } });
client.setRequestHandler(ElicitRequestSchema, answer);
await client.connect(transport(StreamableHTTPClientTransport, StdioClientTransport));
await report(client, (name, args, onprogress) => client.callTool({ name, arguments: args }, undefined, { onprogress }));
