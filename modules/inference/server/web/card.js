// The facts of the model, as the server's card has them.

import { at, say } from "./language.js";

function tell(name, zh, en = zh) {
  const cell = document.querySelector(`[data-fact="${name}"]`);
  cell.parentElement.hidden = !zh;
  say(cell, zh ?? "", en ?? "");
}

export function showCard(card) {
  const { architecture: a, run } = card;
  const count = (number) => number.toLocaleString("en");
  tell("name", card.name);
  tell("version", card.version && String(card.version));
  tell("parameters", count(card.parameters));
  tell("architecture", `${a.num_hidden_layers} 层 × ${a.hidden_size}，${a.num_attention_heads} 头，${a.max_position_embeddings} 位置`,
    `${a.num_hidden_layers} layers × ${a.hidden_size}, ${a.num_attention_heads} heads, ${a.max_position_embeddings} positions`);
  const kind = { character: ["逐字", "characters"], bpe: ["字节对", "BPE"] }[card.tokenizer] ?? [card.tokenizer, card.tokenizer];
  tell("tokenizer", `${kind[0]}，${count(a.vocab_size)} 个`, `${kind[1]}, ${count(a.vocab_size)} ids`);
  tell("template", card.template?.replace("{src_txt}", "…").replaceAll("\n", "↵"));
  const rows = Object.entries(run.rows).map(([split, n]) => `${split} ${count(n)}`).join(", ");
  const data = [run.data, rows].filter(Boolean).join(": ");
  tell("data", data && `${data}${rows ? " 行" : ""}`, `${data}${rows ? " rows" : ""}`);
  tell("parent", run.parent);
  tell("scores", Object.entries(run.scores).map(([name, value]) => `${name} ${Number(value.toPrecision(4))}`).join("\n"));
  tell("run_id", run.run_id);
  const commit = run.commit?.slice(0, 12);
  tell("commit", commit && commit + (run.dirty ? "（有改动）" : ""), commit + (run.dirty ? " (changed)" : ""));
  at("card").hidden = false;
  document.title = `${card.name} · 墨韵 moyun`;
}
