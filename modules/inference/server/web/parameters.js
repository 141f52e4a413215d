// The fields for the parameters that the server takes, as its card lists them: a new one appears by itself.

import { at, make, say } from "./language.js";
import { hintOf, labelOf } from "./words.js";

const ESCAPED = { n: "\n", t: "\t" };

const idOf = (name) => (name === "stop" ? "stop_texts" : name); // `stop` is the button's

let fields = []; // {name, kind, default, hint, choices} each

/** The input of a parameter; null where there is none. */
export const inputOf = (name) => (fields.some((field) => field.name === name) ? at(idOf(name)) : null);

/** Makes the fields. first: what stands in them; shown: those that aren't below "more". */
export function offerFields(card, first, shown) {
  fields = card.fields;
  for (const [place, some] of [["fields", true], ["more-fields", false]]) {
    at(place).replaceChildren(...fields.filter(({ name }) => shown.includes(name) === some).map(fieldOf));
  }
  for (const [name, value] of Object.entries(first)) inputOf(name).value = value;
  at("max_tokens").value = Math.min(first.max_tokens, card.max_tokens);
  at("parameters").hidden = false;
}

function fieldOf(field) {
  const id = idOf(field.name);
  const label = say(make("label", { htmlFor: id }), ...labelOf(field.name));
  const hint = say(make("small", { id: `${id}-hint` }), ...hintOf(field));
  const input = inputFor(field);
  Object.assign(input, { id, spellcheck: false });
  input.setAttribute("aria-describedby", hint.id);
  return make("div", { className: `field ${field.kind}` }, label, input, hint);
}

function inputFor({ kind, choices, default: usual }) {
  if (choices) {
    const options = choices.map((choice) => make("option", { value: choice, lang: "zh-CN" }, choice));
    return make("select", {}, make("option", { value: "" }, "—"), ...options);
  }
  if (kind === "bool") return make("input", { type: "checkbox" });
  if (kind === "int" || kind === "float") {
    return make("input", { inputMode: kind === "int" ? "numeric" : "decimal", maxLength: 15, placeholder: usual ?? "" });
  }
  return make("textarea", { rows: 1 });
}

/** What the fields say; one that is empty isn't sent. */
export function parametersGiven() {
  const given = fields.map(({ name, kind }) => [name, valueOf(kind, inputOf(name))]);
  return Object.fromEntries(given.filter(([, value]) => value !== null));
}

/** What isn't what it should be is sent as it is written, so that it is the server that says what's wrong. */
function valueOf(kind, { value, checked }) {
  if (kind === "bool") return checked || null;
  if (kind === "list[str]") {
    const lines = value.split("\n").filter((line) => line !== "");
    return lines.length ? lines.map((line) => line.replace(/\\([nt\\])/g, (_, sign) => ESCAPED[sign] ?? sign)) : null;
  }
  const text = value.trim();
  if (text === "" || kind === "str") return text || null;
  if (kind === "int" || kind === "float") return Number.isFinite(Number(text)) ? Number(text) : text;
  try { return JSON.parse(text); } catch { return text; }
}
