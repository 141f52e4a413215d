// What the page asks the server for: texts, piece by piece, and anything else with the API key.

import { keep } from "./language.js";
import { inChinese } from "./refusals.js";

const PATIENCE_SECONDS = 8; // for what the server answers at once, unless it hangs

let key = keep(() => sessionStorage.getItem("key")); // the API key, where the server asks for one

export function useKey(text) {
  key = text;
  keep(() => sessionStorage.setItem("key", text)); // gone with the tab
}

export class Refusal extends Error {
  constructor(problem, status = null, retryAfter = null) {
    super(problem.message);
    Object.assign(this, { status, retryAfter, field: problem.param, code: problem.code });
    this.inChinese = inChinese(problem, status);
  }
}

/** fetch, with the API key if there is one. */
function send(path, options = {}) {
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  return fetch(path, { ...options, headers });
}

/** The answer to what takes no time. */
export const ask = (path) => send(path, { signal: AbortSignal.timeout(1000 * PATIENCE_SECONDS) });

/** The answer to a body of JSON. Throws Refusal, or TypeError without a network. */
export async function post(path, body, signal = AbortSignal.timeout(1000 * PATIENCE_SECONDS)) {
  const headers = { "Content-Type": "application/json" };
  const response = await send(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  if (!response.ok) throw await refusal(response);
  return response;
}

export async function refusal(response) {
  const retryAfter = response.headers.get("Retry-After");
  try {
    return new Refusal((await response.json()).error, response.status, retryAfter);
  } catch { // a proxy's own page, say
    return new Refusal({ message: response.statusText || "—" }, response.status, retryAfter);
  }
}

/** The data of server-sent events, however they are cut into packets. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) yield part.replace(/^data: /, "");
  }
}

/** An answer while it comes: {id, text, finish, tokens} a chunk. Throws Refusal, or TypeError without a network. */
export async function* answer(body, signal) {
  const response = await post(body.messages ? "v1/chat/completions" : "v1/completions", body, signal);
  for await (const event of events(response.body)) {
    if (event === "[DONE]") return;
    const { id, error, choices, usage } = JSON.parse(event);
    if (error) throw new Refusal(error);
    const [choice] = choices;
    yield {
      id,
      text: choice?.text ?? choice?.delta?.content ?? "",
      finish: choice?.finish_reason ?? null,
      tokens: usage?.completion_tokens ?? null,
    };
  }
  throw new TypeError("the stream ended early");
}
