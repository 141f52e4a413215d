// The page at /: asks for a stream of text and shows it; of a model that answers, with what was said before. Whatever a model or the server says is put in as
// text; the Content-Security-Policy (web_page.py) would stop anything else.

import { at, firstLanguage, keep, say, speak } from "./language.js";
import { inChinese } from "./refusals.js";

const form = at("form");
const numbers = ["max_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed"];
const sleep = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));
const LOOK_SECONDS = 3; // between two looks at whether the server is there
let card = null;
let key = null; // the API key, where the server asks for one
let turns = []; // what was said before, as messages; a model that continues text has none
let writing = null; // an AbortController while an answer is coming

class Refusal extends Error {
  constructor(problem, status = null, retryAfter = null) {
    super(problem.message);
    Object.assign(this, { status, retryAfter, field: problem.param, inChinese: inChinese(problem.message) });
  }
}

// --- asking ---

/** What the form says. What isn't a number is sent as it is written, so that it is the server that says what's wrong. */
function request() {
  const body = { stream: true, stream_options: { include_usage: true } };
  if (card?.answers_alone) body.messages = [...turns, { role: "user", content: at("prompt").value }];
  else body.prompt = at("prompt").value;
  for (const name of numbers) {
    const text = at(name).value.trim();
    if (text !== "") body[name] = Number.isFinite(Number(text)) ? Number(text) : text;
  }
  body.seed ??= Math.floor(Math.random() * 2 ** 31); // drawn here, so that it can be told and used again
  const stop = at("stop_texts").value.split("\n").filter((line) => line !== "");
  if (stop.length) body.stop = stop.map((line) => line.replace(/\\([nt\\])/g, (_, sign) => ({ n: "\n", t: "\t" })[sign] ?? sign));
  return body;
}

/** fetch, with the API key if there is one. */
function ask(path, options = {}) {
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  return fetch(path, { ...options, headers });
}

async function refusal(response) {
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

/** Shows an answer while it comes; returns what is to be told of it. Throws Refusal, or TypeError without a network. */
async function complete(body, signal) {
  const response = await ask(body.messages ? "v1/chat/completions" : "v1/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  if (!response.ok) throw await refusal(response);
  const text = at("written").appendChild(document.createTextNode(""));
  let finish = null;
  let tokens = 0;
  for await (const event of events(response.body)) {
    if (event === "[DONE]") return { finish, tokens };
    const { error, choices, usage } = JSON.parse(event);
    if (error) throw new Refusal(error);
    text.appendData(choices[0]?.text ?? choices[0]?.delta?.content ?? "");
    finish = choices[0]?.finish_reason ?? finish;
    tokens = usage?.completion_tokens ?? tokens;
  }
  throw new TypeError("the stream ended early");
}

async function write() {
  if (writing) return;
  const body = request();
  writing = new AbortController();
  begin(body);
  const started = performance.now();
  try {
    const { finish, tokens } = await complete(body, writing.signal);
    const seconds = (performance.now() - started) / 1000;
    const speed = `${tokens} tokens · ${seconds.toFixed(1)} s · ${(tokens / seconds).toFixed(0)} tokens/s`;
    const own = finish === "stop";
    say(at("status"), `${own ? "写完了" : "到了长度上限"} · ${speed} · 种子 ${body.seed}`,
      `${own ? "Ended by itself" : "Length limit"} · ${speed} · seed ${body.seed}`);
  } catch (error) {
    if (error.name === "AbortError") say(at("status"), `已停止 · 种子 ${body.seed}`, `Stopped · seed ${body.seed}`);
    else complain(error);
  } finally {
    if (body.messages && at("error").hidden) turns = [...body.messages, { role: "assistant", content: at("written").textContent }];
    writing = null;
    show(false);
  }
}

// --- showing ---

function begin(body) {
  at("given").textContent = body.prompt ?? "";
  at("talk").replaceChildren(...(body.messages ?? []).map(({ role, content }) => {
    const said = document.createElement("p");
    said.className = role;
    said.textContent = content;
    return said;
  }));
  at("written").replaceChildren();
  at("answer").hidden = false;
  at("error").hidden = true;
  for (const input of form.querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
  say(at("status"), "正在写……", "Writing …");
  show(true);
}

/** Buttons while writing and not; the focus doesn't fall off the one that goes. */
function show(busy) {
  const [off, on] = busy ? [at("write"), at("stop")] : [at("stop"), at("write")];
  const focused = document.activeElement === off;
  on.disabled = false;
  if (focused) on.focus();
  off.disabled = true;
  at("copy").disabled = busy || at("answer").hidden;
  at("anew").hidden = busy || !turns.length;
  at("answer").setAttribute("aria-busy", String(busy));
}

function complain(error) {
  say(at("status"), "");
  if (!at("written").textContent) at("answer").hidden = true;
  at("error").hidden = false;
  if (!(error instanceof Refusal)) {
    say(at("error"), "服务器没有回应，或连接中断了。", "The server doesn't answer, or the connection broke off.");
    look();
    return;
  }
  if (error.status === 401) askForKey();
  const wait = error.retryAfter;
  const status = error.status ? `${error.status} · ` : "";
  say(at("error"), `${status}${error.inChinese}${wait ? ` · 请 ${wait} 秒后再试` : ""}`,
    `${status}${error.message}${wait ? ` · try again in ${wait} s` : ""}`);
  const input = { stop: at("stop_texts"), messages: at("prompt") }[error.field] ?? at(error.field ?? "");
  if (input && form.contains(input)) {
    input.closest("details")?.setAttribute("open", "");
    input.setAttribute("aria-invalid", "true");
    input.focus();
  }
}

function offer(examples) {
  for (const old of at("examples").querySelectorAll("button")) old.remove();
  at("examples").append(...examples.map((example) => {
    const button = document.createElement("button");
    button.type = "button";
    button.lang = "zh-CN";
    button.textContent = example;
    button.addEventListener("click", () => {
      at("prompt").value = example;
      write();
    });
    return button;
  }));
}

/** The text with its prompt, as it is shown. Without https the clipboard is there for selections alone. */
async function copy() {
  const text = at("answer").textContent;
  if (navigator.clipboard) await navigator.clipboard.writeText(text);
  else {
    getSelection().selectAllChildren(at("answer"));
    document.execCommand("copy");
    getSelection().removeAllRanges();
  }
  say(at("copy"), "已复制", "Copied");
  await sleep(2);
  say(at("copy"), "复制", "Copy");
}

function tell(name, zh, en = zh) {
  const cell = document.querySelector(`[data-fact="${name}"]`);
  cell.parentElement.hidden = !zh;
  say(cell, zh, en);
}

function showCard() {
  const { architecture: a, run } = card;
  const count = (number) => number.toLocaleString("en");
  tell("name", card.name);
  tell("parameters", count(card.parameters));
  tell("architecture", `${a.num_hidden_layers} 层 × ${a.hidden_size}，${a.num_attention_heads} 头，${a.max_position_embeddings} 位置`,
    `${a.num_hidden_layers} layers × ${a.hidden_size}, ${a.num_attention_heads} heads, ${a.max_position_embeddings} positions`);
  const kind = { character: ["逐字", "characters"], bpe: ["字节对", "BPE"] }[card.tokenizer] ?? [card.tokenizer, card.tokenizer];
  tell("tokenizer", `${kind[0]}，${count(a.vocab_size)} 个`, `${kind[1]}, ${count(a.vocab_size)} ids`);
  const rows = Object.entries(run.rows).map(([split, n]) => `${split} ${count(n)}`).join(", ");
  const data = [run.data, rows].filter(Boolean).join(": ");
  tell("data", data && `${data}${rows ? " 行" : ""}`, `${data}${rows ? " rows" : ""}`);
  tell("parent", run.parent);
  tell("scores", Object.entries(run.scores).map(([name, value]) => `${name} ${Number(value.toPrecision(4))}`).join("\n"));
  tell("run_id", run.run_id);
  const commit = run.commit?.slice(0, 12);
  tell("commit", commit && commit + (run.dirty ? "（有改动）" : ""), commit + (run.dirty ? " (changed)" : ""));
  at("card").hidden = false;
  at("max_tokens").value = Math.min(Number(at("max_tokens").value) || 64, card.max_tokens);
  document.title = `${card.name} · 墨韵 moyun`;
}

// --- whether the server is there ---

function askForKey() {
  if (!at("lock").hidden) return; // somebody may be typing elsewhere
  at("lock").hidden = false;
  at("key").focus();
}

/** Tells at the top how the server is; the first time, and when it has been away, it asks for the model's card. */
async function look() {
  const known = card && at("state").classList.contains("ready");
  try {
    const response = await ask(known ? "ready" : "card");
    if (response.ok) {
      if (!known) meet(await response.json());
      return;
    }
    at("state").classList.remove("ready");
    if (response.status === 401) askForKey();
    const problem = known ? new Refusal({ message: `the server is ${(await response.json()).status}` }) : await refusal(response);
    say(at("state"), problem.inChinese, problem.message);
  } catch {
    at("state").classList.remove("ready");
    say(at("state"), "服务器没有回应", "the server doesn't answer");
  }
}

/** Shows what model it is. */
function meet(model) {
  if (card?.name !== model.name) forget();
  card = model;
  at("lock").hidden = true;
  say(at("state"), `${card.name} · 就绪`, `${card.name} · ready`);
  at("state").classList.add("ready");
  offer(card.examples);
  showCard();
}

/** Begins another conversation. */
function forget() {
  turns = [];
  at("talk").replaceChildren();
  at("answer").hidden = true;
  say(at("status"), "");
  show(false);
}

async function watch() {
  for (;;) {
    await look();
    await sleep(LOOK_SECONDS);
  }
}

at("language").addEventListener("click", () => speak(document.documentElement.lang === "zh" ? "en" : "zh"));
at("copy").addEventListener("click", copy);
at("anew").addEventListener("click", () => { forget(); at("prompt").focus(); });
at("lock").addEventListener("submit", (event) => {
  event.preventDefault();
  key = at("key").value.trim();
  keep(() => sessionStorage.setItem("key", key)); // gone with the tab
  look();
});
at("stop").addEventListener("click", () => writing?.abort());
form.addEventListener("submit", (event) => { event.preventDefault(); write(); });
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); write(); }
  if (event.key === "Escape" && !event.isComposing) writing?.abort();
});
speak(firstLanguage());
if (!matchMedia("(min-width: 56rem)").matches) for (const id of ["parameters", "card"]) at(id).open = false;
key = keep(() => sessionStorage.getItem("key"));
watch();
