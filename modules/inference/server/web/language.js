// The page's two languages: both stand in it, and one of them is there (page.css).

export const at = (id) => document.getElementById(id);

/** Puts one text in both languages into an element. */
export function say(element, zh, en = zh) {
  element.replaceChildren(...[["zh", zh], ["en", en]].map(([lang, text]) => {
    const span = document.createElement("span");
    span.lang = lang;
    span.textContent = text;
    return span;
  }));
}

export function speak(language) {
  document.documentElement.lang = language;
  keep(() => localStorage.setItem("language", language));
}

/** What the browser has stored, or undefined: private windows may forbid it. */
export function keep(action) {
  try { return action(); } catch { return undefined; }
}

export function firstLanguage() {
  return keep(() => localStorage.getItem("language")) ?? (navigator.language.startsWith("zh") ? "zh" : "en");
}
