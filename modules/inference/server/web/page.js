// The page at /: asks for a stream of text and shows it; of a model with a prompt template, in turns. Whatever a model
// or the server says is put in as text; the Content-Security-Policy (web_page.py) would stop anything else.

import { answer, ask, Refusal, refusal, useKey } from "./asking.js";
import { showCard } from "./card.js";
import { askAbout, listenForThumbs } from "./feedback.js";
import { at, firstLanguage, make, placeholder, say, speak } from "./language.js";
import { inputOf, offerFields, parametersGiven } from "./parameters.js";
import { promptsOf, taskOf } from "./tasks.js";

const sleep = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));
const LOOK_SECONDS = 3; // between two looks at whether the server is there
const CARD_LOOKS = 10; // so many of them until the card is read again: the model may be another
const FIRST = ["max_tokens", "temperature", "top_p", "seed"]; // parameters that are shown at once
const OF_VERSE = ["form", "tones"];
let card = null;
let turns = []; // {question, answer, id, rated, broken} each; a model that continues text has one at most
let writing = null; // an AbortController while an answer is coming

const talks = () => Boolean(card?.answers_alone);

// --- writing ---

function request(question, before, seed) {
  const body = { stream: true, stream_options: { include_usage: true }, ...parametersGiven() };
  if (talks()) {
    const earlier = at("with_earlier").checked ? before.filter((turn) => !turn.broken) : [];
    const said = earlier.flatMap((turn) => [
      { role: "user", content: turn.question },
      { role: "assistant", content: turn.answer },
    ]);
    body.messages = [...said, { role: "user", content: question }];
  } else body.prompt = question;
  // Drawn here, so that it can be told and used again.
  if (seed || body.seed === undefined) body.seed = Math.floor(Math.random() * 2 ** 31);
  return body;
}

/** Asks for an answer to what stands in the box; with `anew` for another one to the last question. */
async function write(anew = false) {
  if (writing) return;
  const kept = turns;
  const before = talks() ? turns.slice(0, anew ? -1 : undefined) : [];
  const question = anew ? turns.at(-1).question : at("prompt").value;
  const body = request(question, before, anew);
  const turn = { question, answer: "" };
  turns = [...before, turn];
  writing = new AbortController();
  begin(anew);
  const started = performance.now();
  try {
    const { finish, tokens } = await receive(turn, body);
    const seconds = (performance.now() - started) / 1000;
    const speed = `${tokens} tokens · ${seconds.toFixed(1)} s · ${(tokens / seconds).toFixed(0)} tokens/s`;
    const own = finish === "stop";
    say(at("status"), `${own ? "写完了" : "到了长度上限"} · ${speed} · 种子 ${body.seed}`,
      `${own ? "Ended by itself" : "Length limit"} · ${speed} · seed ${body.seed}`);
  } catch (error) {
    if (error.name === "AbortError") say(at("status"), `已停止 · 种子 ${body.seed}`, `Stopped · seed ${body.seed}`);
    else turn.broken = true;
    if (!turn.answer) turns = kept;
    if (!anew && talks() && (turn.broken || !turn.answer)) at("prompt").value ||= question; // nothing typed is lost
    if (turn.broken) complain(error);
  } finally {
    writing = null;
    showTurns();
    show();
  }
}

/** Shows an answer while it comes; returns how it ended. */
async function receive(turn, body) {
  let finish = null;
  let tokens = 0;
  const text = at("written").appendChild(document.createTextNode(""));
  for await (const piece of answer(body, writing.signal)) {
    const below = document.documentElement.scrollHeight - scrollY - innerHeight < 80;
    turn.id = piece.id;
    turn.answer += piece.text;
    text.appendData(piece.text);
    finish = piece.finish ?? finish;
    tokens = piece.tokens ?? tokens;
    if (talks() && below) scrollTo(0, document.documentElement.scrollHeight);
  }
  return { finish, tokens };
}

function begin(anew) {
  if (talks() && !anew) at("prompt").value = "";
  at("error").hidden = true;
  for (const input of at("ask").querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
  say(at("status"), "正在写……", "Writing …");
  showTurns();
  show();
  if (talks()) scrollTo(0, document.documentElement.scrollHeight);
}

// --- showing ---

function showTurns() {
  const last = turns.at(-1);
  const said = (className, text) => make("p", { className }, text);
  const earlier = turns.slice(0, -1).flatMap((turn) => [said("user", turn.question), said("assistant", turn.answer)]);
  at("talk").replaceChildren(...(talks() ? [...earlier, ...(last ? [said("user", last.question)] : [])] : []));
  at("given").textContent = talks() ? "" : (last?.question ?? "");
  at("written").textContent = last?.answer ?? "";
  at("answer").hidden = !last;
}

/** Buttons while writing and not; the focus doesn't fall off the one that goes. */
function show() {
  const busy = Boolean(writing);
  const [off, on] = busy ? [at("write"), at("stop")] : [at("stop"), at("write")];
  const focused = document.activeElement === off;
  on.disabled = on.hidden = false;
  if (focused) (talks() && !busy ? at("prompt") : on).focus();
  off.disabled = off.hidden = true;
  const done = !busy && turns.length > 0;
  at("tools").hidden = at("copy").disabled = !done;
  at("edit").hidden = at("anew").hidden = !done || !talks();
  askAbout(done && card?.feedback && turns.at(-1).id ? turns.at(-1) : null);
  at("answer").setAttribute("aria-busy", String(busy));
  document.body.classList.toggle("empty", !turns.length);
}

function complain(error) {
  at("error").hidden = false;
  say(at("status"), "");
  if (!(error instanceof Refusal)) {
    say(at("error"), "服务器没有回应，或连接中断了。", "The server doesn't answer, or the connection broke off.");
    look();
    return;
  }
  if (error.status === 401) askForKey();
  const wait = error.retryAfter;
  const status = error.status ? `${error.status} · ` : "";
  const { text, detail } = error.inChinese;
  const words = detail && make("small", { lang: "en-US" }, detail); // the server's own
  say(at("error"), [`${status}${text}${wait ? ` · 请 ${wait} 秒后再试` : ""}`, words],
    `${status}${error.message}${wait ? ` · try again in ${wait} s` : ""}`);
  const input = ["prompt", "messages"].includes(error.field) ? at("prompt") : inputOf(error.field);
  if (input) {
    for (let box = input.closest("details"); box; box = box.parentElement.closest("details")) box.open = true;
    input.setAttribute("aria-invalid", "true");
    input.focus();
  }
}

function offer(examples) {
  for (const old of at("examples").querySelectorAll("button")) old.remove();
  at("examples").append(...examples.map((text) => make("button", {
    type: "button",
    lang: "zh-CN",
    title: text,
    onclick: () => { at("prompt").value = text; write(); },
  }, text)));
  at("examples").hidden = !examples.length;
}

/** The text with what it continues, as it is shown. Without https the clipboard is there for selections alone. */
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

/** Puts the last question back into the box; its answer goes. */
function edit() {
  const last = turns.at(-1);
  turns = turns.slice(0, -1);
  at("prompt").value = last.question;
  forgetWords();
  at("prompt").focus();
}

/** Begins another conversation. */
function forget() {
  turns = [];
  forgetWords();
}

function forgetWords() {
  say(at("status"), "");
  at("error").hidden = true;
  showTurns();
  show();
}

// --- whether the server is there ---

/** state: ready, waiting or gone. */
function tellState(state, zh, en) {
  at("state").className = state;
  if (at("state").textContent !== zh + en) say(at("state"), zh, en); // said aloud, so not again and again
}

function askForKey() {
  if (!at("lock").hidden) return; // somebody may be typing elsewhere
  at("lock").hidden = false;
  at("key").focus();
}

/** Tells at the top how the server is. Reads the model's card at first, when the server was away, and now and then. */
async function look(readCard = false) {
  try {
    let response = await ask("ready");
    if (response.ok && card && !readCard && at("state").className === "ready") return;
    if (response.ok) response = await ask("card");
    if (response.ok) return meet(await response.json());
    const status = await response.clone().json().then((body) => body.status, () => null); // of /ready
    const problem = status ? new Refusal({ message: `the server is ${status}`, code: status }) : await refusal(response);
    if (response.status === 401) askForKey();
    const waits = status || problem.status === 401;
    tellState(waits ? "waiting" : "gone", problem.inChinese.text, problem.message);
  } catch {
    tellState("gone", "服务器没有回应", "the server doesn't answer");
  }
}

/** Shows what model it is. */
function meet(model) {
  const other = card?.name !== model.name || card.template !== model.template;
  if (other && writing) return; // what is being written is shown to its end
  card = model;
  at("lock").hidden = true;
  if (other) welcome(taskOf(model));
  tellState("ready", `${card.name} · 就绪`, `${card.name} · ready`);
  showCard(card);
  if (!writing) show();
}

/** The form as it suits the model. */
function welcome(task) {
  const [zh, en, keys] = talks() ? ["发送", "Send", "↵"] : ["续写", "Write", "Ctrl ↵"];
  say(at("write"), [zh, make("kbd", {}, keys)], [en, make("kbd", {}, keys)]);
  say(at("prompt-label"), ...task.label);
  placeholder(at("prompt"), ...task.hint);
  at("earlier").hidden = !talks();
  at("with_earlier").checked = !task.alone;
  if (talks()) at("writing").append(at("error"), at("composer"));
  else at("writing").prepend(at("composer"), at("error"));
  document.body.classList.toggle("talks", talks());
  offer([...promptsOf(card), ...(card.examples.length ? card.examples : (task.examples ?? []))]);
  offerFields(card, task.generation, [...FIRST, ...(talks() ? [] : OF_VERSE)]);
  forget();
}

async function watch() {
  for (let count = 1; ; count += 1) {
    if (!document.hidden) await look(count % CARD_LOOKS === 0);
    await sleep(LOOK_SECONDS);
  }
}

function onKey(event) {
  if (event.isComposing) return; // an input method's own
  if (event.key === "Escape") writing?.abort();
  // In a conversation Enter alone sends, where there is a keyboard whose Shift can make a line end.
  const enters = talks() && event.target === at("prompt") && !event.shiftKey && matchMedia("(hover: hover)").matches;
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey || enters)) return;
  event.preventDefault();
  if (at("feedback").contains(event.target)) at("send").click();
  else write();
}

at("language").addEventListener("click", () => speak(document.documentElement.lang === "zh" ? "en" : "zh"));
at("copy").addEventListener("click", copy);
at("again").addEventListener("click", () => write(true));
at("edit").addEventListener("click", edit);
at("anew").addEventListener("click", () => { forget(); at("prompt").focus(); });
at("lock").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(at("key").value.trim());
  look();
});
at("stop").addEventListener("click", () => writing?.abort());
at("ask").addEventListener("submit", (event) => { event.preventDefault(); write(); });
document.addEventListener("keydown", onKey);
document.addEventListener("visibilitychange", () => document.hidden || look());
listenForThumbs(complain);
speak(firstLanguage());
if (!matchMedia("(min-width: 56rem)").matches) for (const id of ["parameters", "card"]) at(id).open = false;
watch();
