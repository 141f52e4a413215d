// The page's two languages: both stand in it, and one of them is there (page.css).

export const at = (id) => document.getElementById(id);

/** An element with these properties and children. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Puts one text in both languages into an element. zh: a text, or texts and elements. */
export function say(element, zh, en = zh) {
  element.replaceChildren(...[["zh", zh], ["en", en]].map(([lang, text]) => make("span", { lang }, ...[text].flat())));
  return element;
}

export function speak(language) {
  document.documentElement.lang = language;
  for (const box of document.querySelectorAll("[data-zh]")) box.placeholder = box.dataset[language];
  keep(() => localStorage.setItem("language", language));
}

/** The text that a box shows while it is empty. */
export function placeholder(box, zh, en) {
  Object.assign(box.dataset, { zh, en });
  box.placeholder = box.dataset[document.documentElement.lang];
}

/** What the browser has stored, or undefined: private windows may forbid it. */
export function keep(action) {
  try { return action(); } catch { return undefined; }
}

export function firstLanguage() {
  return keep(() => localStorage.getItem("language")) ?? (navigator.language.startsWith("zh") ? "zh" : "en");
}
