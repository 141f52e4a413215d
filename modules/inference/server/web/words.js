// What the parameters of a request are called: by name the Chinese label and hint, and the English label. The English
// hints come from the server (/card); one that isn't here is called by its name.

export const WORDS = {
  max_tokens: ["最多字数（token）", "写到这么多 token 为止", "Max tokens"],
  temperature: ["温度", "越低越稳，越高越奇；0：每次取最可能的", "Temperature"],
  top_p: ["核采样 top-p", "只在概率合计达到 p 的最少几个 token 中选；1：不限", "Top-p"],
  top_k: ["候选数 top-k", "只在最可能的 k 个 token 中选；0：不限", "Top-k"],
  min_p: ["最小概率 min-p", "只选概率达到最可能者这一倍数的 token；0：不限，1：只取它", "Min-p"],
  repetition_penalty: ["重复惩罚", "大于 1：少用文中已有的 token；1：无", "Repetition penalty"],
  presence_penalty: ["存在惩罚", "写过的 token 减去这么多分；-2 至 2，0：无", "Presence penalty"],
  frequency_penalty: ["频率惩罚", "token 每写过一次就减去这么多分；-2 至 2，0：无", "Frequency penalty"],
  logit_bias: ["token 偏置", "token 编号 → 给它加的分，如 {\"5\": -100}；-100：从不写，100：只写它", "Logit bias"],
  seed: ["随机种子", "开头、参数和种子都相同，文本就相同；空：每次不同", "Seed"],
  stop: ["遇到即停", "一行一个；\\n 表示换行，\\t 制表符，\\\\ 反斜杠", "Stop at"],
  form: ["诗体", "连同开头，全文合于此体的句数、字数和押韵（平水韵）", "Form of verse"],
  tones: ["合平仄", "每个字都合平仄，不只是韵脚", "Tones too"],
  json_schema: ["JSON 模式", "文本是合于此模式（JSON Schema）的 JSON", "JSON schema"],
  regex: ["正则表达式", "全文合于这个正则表达式", "Regular expression"],
};

const ENGLISH = {
  seed: "Makes sampling repeatable; empty: a new one each time",
  stop: "One a line; \\n is a line break, \\t a tab, \\\\ a backslash",
};

export const labelOf = (name) => [WORDS[name]?.[0] ?? name, WORDS[name]?.[2] ?? name];

export const hintOf = ({ name, hint }) => [WORDS[name]?.[1] ?? hint, ENGLISH[name] ?? hint];
