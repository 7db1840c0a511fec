// What a TypeScript client does with a server, the same for both SDK lines. The one argument is JSON with where
// the server is; what came back goes to stdout as JSON. See `test_clients.py`, which says what it should be.

import { createRequire } from "node:module";

export const job = JSON.parse(process.argv[2]);

// The packages live in a folder of their own, not beside this file.
export const load = createRequire(`${job.modules}/`);

export const identity = { name: "interop", version: "1.0.0" };

export const answer = async () => ({ action: "accept", content: { name: "Ada", username: "ada", email: "ada@example.org" } });

export function transport(Http, Stdio) {
  if (!job.url) {
    const [command, ...args] = job.command;
    return new Stdio({ command, args, stderr: "inherit" });
  }
  const headers = job.key ? { Authorization: `Bearer ${job.key}` } : {};
  return new Http(new URL(job.url), { requestInit: { headers } });
}

// `call(name, arguments, onprogress)` calls a tool.
export async function report(client, call) {
  const progress = [];
  const { tools } = await client.listTools();
  const text = await call("test_simple_text", {});
  const failed = await call("test_error_handling", {});
  await call("test_tool_with_progress", {}, (update) => progress.push(update.progress));
  const asked = await call(job.question, job.question === "test_elicitation" ? { message: "Who are you?" } : {});
  const { contents } = await client.readResource({ uri: "test://static-text" });
  const { messages } = await client.getPrompt({ name: "test_simple_prompt" });
  await client.close();
  console.log(
    JSON.stringify({
      tools: tools.map((tool) => tool.name),
      text: text.content[0].text,
      failed: failed.isError,
      progress,
      asked: asked.content[0].text,
      resource: contents[0].text,
      prompt: messages[0].content.text,
    }),
  );
}
