// What the server refuses with, in Chinese. It speaks English alone; what isn't known here is shown as it came.

const FIELDS = {
  prompt: "开头", messages: "对话", max_tokens: "最多字数", temperature: "温度", top_p: "核采样 top-p",
  top_k: "候选数 top-k", repetition_penalty: "重复惩罚", seed: "随机种子", stop: "遇到即停",
};
const RULES = {
  "a number": "数字", "a whole number": "整数", "at least 1": "至少为 1", "0 (greedy) or from 0.001 to 1000": "0（每次取最可能的）或 0.001 至 1000",
  "0 (all tokens) or positive": "0（不限）或正整数", "above 0 and at most 1": "大于 0 且不超过 1",
  "from 0.01 to 100 (1: none)": "0.01 至 100（1：无）", "from 0 to 2^63-1": "0 至 2^63-1", "at most 1,000,000,000,000": "不超过 1,000,000,000,000",
};
const COUNTED = { characters: "个字", tokens: "个 token" };
const field = (name) => FIELDS[name] ?? name;
const rule = (text) => RULES[text] ?? text;

const SAYINGS = [
  [/^(\w+)(?: \d+)? must be (.+), not (.+)$/, (_, name, wanted, found) => `${field(name)}应为${rule(wanted)}，而不是 ${found}`],
  [/^(\w+) \((.+?)\) must be (.+)$/, (_, name, found, wanted) => `${field(name)}（${found}）应为${rule(wanted)}`],
  [/^(\w+) must hold finite numbers/, (_, name) => `${field(name)}应为有限的数`],
  [/^(\w+) \((.+?)\) is over (\d+) \((.+)\)$/, (_, name, found, most, key) => `${field(name)}（${found}）超过了 ${most}（${key}）`],
  [/^(\w+)(?: \d+)? ha(?:s|ve) (\d+) (\w+)(?:, template included)?; this server takes up to (\d+) tokens/,
    (_, name, found, unit, most) => `${field(name)}有 ${found} ${COUNTED[unit] ?? unit}，服务器最多接受 ${most} 个 token`],
  [/^(\w+)(?: \d+)? is empty/, (_, name) => `${field(name)}是空的，请至少写一个字`],
  [/^(\w+)(?: \d+)? holds half a surrogate pair/, (_, name) => `${field(name)}里有半个代理对（残缺的字符）`],
  [/^stop has (\d+) texts; there may be (\d+)$/, (_, found, most) => `遇到即停有 ${found} 条，最多 ${most} 条`],
  [/^stop holds a text of (\d+) characters; there may be (\d+)$/, (_, found, most) => `遇到即停里有一条 ${found} 个字，最多 ${most} 个字`],
  [/^the body is over (\d+) bytes/, (_, most) => `请求超过了 ${most} 字节`],
  [/^too many prompts are waiting/, () => "排队的人太多，请稍后再试"],
  [/^the server is loading$/, () => "模型正在加载"],
  [/^the server is (draining|stopping)$/, () => "服务器正在停止"],
  [/^the server was stopped/, () => "服务器停止了，没有写完"],
  [/^not done within/, () => "超过了服务器的时限（limits.request_seconds），请减少字数，或稍后再试"],
  [/^the model failed/, () => "模型在这个请求上出错了，原因在服务器的日志里"],
  [/^the server failed/, () => "服务器在这个请求上出错了，原因在它的日志里"],
  [/^this API key isn't the server's/, () => "API 密钥不对"],
  [/^this server asks for its API key/, () => "这台服务器需要 API 密钥"],
];

export function inChinese(message) {
  for (const [pattern, say] of SAYINGS) {
    const found = pattern.exec(message);
    if (found) return say(...found);
  }
  return message;
}
