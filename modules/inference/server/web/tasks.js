// What the tasks of conf/task are asked: labels and hints in both languages, prompts to try, and how texts are written
// there. A test holds templates and parameters to conf/.

export const TASKS = {
  couplets: {
    template: "{src_txt}\n",
    label: ["上联", "First line"],
    hint: ["写一句上联，模型对下联", "a first line, to which the model writes the second"],
    examples: ["烽火连三月", "两岸猿声啼不住", "明月松间照"],
    generation: { max_tokens: 32, temperature: 0 },
    alone: true,
  },
  summarization: {
    template: "{src_txt}\n寓意：",
    label: ["寓言", "Parable"],
    hint: ["讲一则寓言，模型写出寓意", "a parable, of which the model writes the moral"],
    examples: [
      "一个农夫看见兔子撞死在树桩上，从此放下锄头，天天守在树旁等兔子，庄稼全荒了。",
      "狐狸够不着架上的葡萄，走开时说：“这葡萄一定是酸的。”",
      "有人嫌禾苗长得慢，就一棵棵往上拔，第二天苗全枯死了。",
    ],
    generation: { max_tokens: 96, temperature: 0, repetition_penalty: 1.2 },
    alone: true,
  },
  question_generation: {
    template: "{src_txt}\n问：",
    label: ["文章", "Passage"],
    hint: ["一段文章，答案放在【】里，模型提出问题", "a passage with the answer in 【】, to which the model asks the question"],
    examples: [
      "《静夜思》是唐代诗人【李白】写的一首五言诗。",
      "长江全长约六千三百公里，发源于【青藏高原】，在上海流入东海。",
      "杜甫生于【712年】，河南巩县人，世称诗圣。",
    ],
    generation: { max_tokens: 64, temperature: 0 },
    alone: true,
  },
  data_to_text: {
    template: "{src_txt}\n说法：",
    label: ["对话行为", "Dialogue act"],
    hint: ["谁，要表达哪些意图，模型写成一句话", "who says what, which the model puts into a sentence"],
    examples: ["系统：Inform+酒店+价格；Inform+酒店+评分", "用户：Request+景点+门票", "系统：Recommend+餐馆+名称"],
    generation: { max_tokens: 128, temperature: 0 },
    alone: true,
  },
  translate: {
    data: "classical_modern",
    template: "{src_txt}\n今译：",
    label: ["文言文", "Classical Chinese"],
    hint: ["一句文言文，模型译成现代汉语", "a classical sentence, which the model puts into modern Chinese"],
    examples: ["学而时习之，不亦说乎？", "温故而知新，可以为师矣。", "臣闻求木之长者，必固其根本。"],
    generation: { max_tokens: 256, temperature: 0, repetition_penalty: 1.1 },
    alone: true,
  },
  instructions: {
    template: "问：{src_txt}\n答：",
    label: ["指令", "Instruction"],
    hint: ["要模型做什么", "what the model is to do"],
    examples: ["用一句话介绍长城。", "列出三种保持健康的方法。", "把这句话说得更有礼貌：\n把窗户关上。"],
    generation: { max_tokens: 256, temperature: 0, repetition_penalty: 1.2 },
  },
};

const VERSE = {
  label: ["开头", "Prompt"],
  hint: ["写个开头，模型接着写", "how the text begins; the model goes on"],
  generation: { max_tokens: 64, temperature: 0.8, top_p: 0.9 },
};
const OTHER = { label: ["消息", "Message"], hint: ["写给模型的话", "what you say to the model"], generation: VERSE.generation };

/** The task that a model was trained for, as far as its card says so: by its name or its data's, and the prompt template
 * with it. */
export function taskOf({ task, template }) {
  const known = taskCalled(task);
  return known?.template === template ? known : template === null ? VERSE : OTHER;
}

/** A prompt for each task of a model that was trained on several and continues text: an example in the task's template. */
export function promptsOf({ template, task_templates: templates = {} }) {
  if (template !== null) return [];
  const known = Object.entries(templates).filter(([name]) => taskCalled(name));
  return known.map(([name, own]) => own.replace("{src_txt}", () => taskCalled(name).examples[0]));
}

function taskCalled(wanted) {
  return Object.entries(TASKS).find(([name, { data = name }]) => wanted === name || wanted === data)?.[1];
}
