// Requests to the server: streams of JSON lines, cancelled by a signal.

/** What went wrong, in words for the reader of the page. */
export class Problem extends Error {}

/** Yields the stages of a stream; throws a Problem when the server says that one failed. */
export async function* stages(path, body, signal) {
  const response = await send(path, { method: "POST", body: JSON.stringify(body), signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await read(reader, signal);
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const stage = JSON.parse(line);
      if (stage.stage === "failed") throw new Problem(stage.message);
      yield stage;
    }
  }
}

export async function get(path) {
  return (await send(path, {})).json();
}

export async function post(path, body) {
  return (await send(path, { method: "POST", body: JSON.stringify(body) })).json();
}

async function send(path, options) {
  const headers = options.body ? { "Content-Type": "application/json" } : {};
  let response;
  try {
    response = await fetch(path, { headers, ...options });
  } catch (error) {
    throw unlessAborted(error, options.signal);
  }
  if (response.ok) return response;
  throw new Problem(await reason(response));
}

async function read(reader, signal) {
  try {
    return await reader.read();
  } catch (error) {
    throw unlessAborted(error, signal);
  }
}

function unlessAborted(error, signal) {
  if (signal?.aborted) return error;
  return new Problem(
    "The server does not answer. Is qwen3-rag serve still running in its terminal?",
  );
}

async function reason(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).message;
  } catch {
    return text || `The server refused with status ${response.status}.`;
  }
}
