// What the server refuses with, in Chinese. It speaks English alone; of what isn't known here is said what it is about,
// and the server's own words stand beside it.

import { labelOf } from "./words.js";

const FIELDS = { prompt: "开头", messages: "对话", max_completion_tokens: labelOf("max_tokens")[0], body: "请求", id: "文本", user: "用户" };
const field = (name) => FIELDS[name] ?? labelOf(name)[0];

const RULES = {
  "a number": "数字", "a whole number": "整数", "true or false": "true 或 false", "a text": "文字", positive: "正数",
  "a text or a list of texts": "文字，或几条文字",
  "a mapping of token ids to numbers, e.g. {5: -100}": "token 编号到数字的对应，例如 {\"5\": -100}",
  "0 (greedy) or from 0.001 to 1000": "0（每次取最可能的）或 0.001 至 1000", "0 (all tokens) or positive": "0（不限）或正整数",
  "above 0 and at most 1": "大于 0 且不超过 1",
};
const NOTES = { greedy: "每次取最可能的", "all tokens": "不限", none: "无" };
const SHAPES = [
  [/^from (\S+?)(?: \((.+?)\))? to (\S+?)(?: \((\S+): (.+?)\))?$/, (_, low, at, high, value, means) =>
    `${low}${at ? `（${NOTES[at] ?? at}）` : ""} 至 ${high}${value ? `（${value}：${NOTES[means] ?? means}）` : ""}`],
  [/^at least (\S+)$/, (_, least) => `至少为 ${least}`],
  [/^at most (\S+)$/, (_, most) => `不超过 ${most}`],
  [/^one of (.+)$/, (_, these) => `其中之一：${these.replaceAll(", ", "、")}`],
];
const COUNTED = { characters: "个字", tokens: "个 token" };

function translated(text, sayings) {
  for (const [pattern, say] of sayings) {
    const found = pattern.exec(text);
    if (found) return say(...found);
  }
  return null;
}

const rule = (text) => RULES[text] ?? translated(text, SHAPES) ?? text;

const SAYINGS = [
  [/^logit_bias must map token ids to numbers from -100 to 100, not (.+) to (.+)$/,
    (_, token, bias) => `${field("logit_bias")}应把 token 编号对应到 -100 至 100 的数，而不是把 ${token} 对应到 ${bias}`],
  [/^logit_bias names token (\d+); this model's token ids are from 0 to (\d+)$/,
    (_, token, last) => `${field("logit_bias")}里有 token ${token}；这个模型的编号是 0 至 ${last}`],
  [/^logit_bias has (\d+) token ids; there may be (\d+)$/, (_, found, most) => `${field("logit_bias")}有 ${found} 个 token，最多 ${most} 个`],
  [/^(\w+)(?: \d+)? must be (.+), not (.+)$/, (_, name, wanted, found) => `${field(name)}应为${rule(wanted)}，而不是 ${found}`],
  [/^(\w+) \((.+?)\) must be (.+)$/, (_, name, found, wanted) => `${field(name)}（${found}）应为${rule(wanted)}`],
  [/^(\w+) must hold finite numbers/, (_, name) => `${field(name)}应为有限的数`],
  [/^(\w+) \((.+?)\) is over (\d+) \((.+)\)$/, (_, name, found, most, key) => `${field(name)}（${found}）超过了 ${most}（${key}）`],
  [/^(\w+)(?: \d+)? ha(?:s|ve) (\d+) (\w+)(?:, template included)?; this server takes up to (\d+) tokens/,
    (_, name, found, unit, most) => `${field(name)}有 ${found} ${COUNTED[unit] ?? unit}，服务器最多接受 ${most} 个 token`],
  [/^(\w+)(?: \d+)? is empty/, (_, name) => `${field(name)}是空的，请至少写一个字`],
  [/^(\w+)(?: \d+)? holds half a surrogate pair/, (_, name) => `${field(name)}里有半个代理对（残缺的字符）`],
  [/^stop must not hold an empty text$/, () => "遇到即停里不能有空的一条"],
  [/^stop has (\d+) texts; there may be (\d+)$/, (_, found, most) => `遇到即停有 ${found} 条，最多 ${most} 条`],
  [/^stop holds a text of (\d+) characters; there may be (\d+)$/, (_, found, most) => `遇到即停里有一条 ${found} 个字，最多 ${most} 个字`],
  [/^tones are kept in a form of verse/, () => `要合平仄，先选${field("form")}`],
  [/^form (\S+?)(?: \((\S+)\))? doesn't go with the beginning (.+?): (nothing more|a mark|a character) belongs where (.+?) stands/,
    (_, form, lines, begun, wanted, found) => `开头 ${begun} 不合${form}${lines ? `（${lines}）` : ""}：${found} 处应为${{ "a mark": "标点", "a character": "汉字" }[wanted] ?? "结尾"}`],
  [/^form (\S+) can't be written: this model's vocabulary/, (_, form) => `这个模型的词表缺少${form}所需的字，写不了`],
  [/^the body is over (\d+) bytes/, (_, most) => `请求超过了 ${most} 字节`],
  [/^this API key isn't the server's/, () => "API 密钥不对"],
  [/^this server asks for its API key/, () => "这台服务器需要 API 密钥"],
];

/** By OpenAI's `code`, whatever the words are. */
const CODES = {
  overloaded: "排队的人太多，请稍后再试", loading: "模型正在加载", draining: "服务器正在停止",
  timeout: "超过了服务器的时限（limits.request_seconds），请减少字数，或稍后再试",
  internal_error: "服务器在这个请求上出错了，原因在它的日志里",
  model_failed: "模型在这个请求上出错了，原因在服务器的日志里", model_lost: "写到一半，模型的进程停了，正在重新启动，请稍后再试",
  answer_not_found: "服务器已经不记得这段文字，不能再评价了", feedback_off: "这台服务器不收评价",
};
const STATUSES = {
  401: "服务器需要 API 密钥", 403: "服务器不许这样做", 404: "服务器没有找到所要的", 413: "请求太大", 421: "服务器不认识这个地址的名称",
  429: "请求太多，请稍后再试", 500: "服务器出错了", 502: "服务器没有回应代理", 503: "服务器现在不接受请求", 504: "服务器没有按时回应",
};

/** A refusal in Chinese: {text, detail}, the server's own words in `detail` where the text says less than they do. */
export function inChinese({ message, code, param }, status) {
  const text = CODES[code] ?? translated(message, SAYINGS);
  if (text) return { text, detail: "" };
  return { text: STATUSES[status] ?? (param ? `${field(param)}有误` : "服务器拒绝了"), detail: message };
}
