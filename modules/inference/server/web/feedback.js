// Thumbs up and down: what a person thinks of an answer goes to the server, with a better text where there is one.

import { post } from "./asking.js";
import { at, say } from "./language.js";

let turn = null; // {id, rated}: the answer that is asked about

/** Asks about an answer; of null about none. What is being typed about the same one stays. */
export function askAbout(answer) {
  if (answer === turn) return;
  turn = answer;
  at("thumbs").hidden = !answer;
  at("feedback").hidden = true;
  at("comment").value = at("correction").value = "";
  show();
}

function show() {
  for (const value of ["up", "down"]) {
    at(value).setAttribute("aria-pressed", String(turn?.rated === value));
    at(value).disabled = Boolean(turn?.rated);
  }
  at("down").setAttribute("aria-expanded", String(!at("feedback").hidden));
}

async function rate(value, complain) {
  const about = turn;
  const said = [["comment", at("comment").value.trim()], ["correction", at("correction").value.trim()]];
  const given = value === "down" ? Object.fromEntries(said.filter(([, text]) => text)) : {};
  try {
    await post("v1/feedback", { id: about.id, value, ...given });
  } catch (error) {
    complain(error);
    return;
  }
  about.rated = value;
  if (turn !== about) return;
  at("feedback").hidden = true;
  show();
  say(at("status"), "谢谢，记下了。", "Thank you, noted.");
}

/** complain: shows an error. */
export function listenForThumbs(complain) {
  at("up").addEventListener("click", () => rate("up", complain));
  at("send").addEventListener("click", () => rate("down", complain));
  at("down").addEventListener("click", () => {
    at("feedback").hidden = !at("feedback").hidden;
    show();
    if (!at("feedback").hidden) at("comment").focus();
  });
}
