"""OpenAI's client for JavaScript and Vercel's AI SDK: chat, completions, streams.

They run where Node.js finds them: `npm install openai ai @ai-sdk/openai-compatible` in a folder, and NODE_PATH is its
node_modules.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from modules.tokenizer.tokenizer import Tokenizer
from tests.helpers.server_tools import RealServer, real_server

pytestmark = pytest.mark.server

BEGINNING = """
const [url, apiKey] = process.argv.slice(1);
const messages = [{ role: "user", content: "春眠" }];
const collected = async (pieces, textOf) => {
  let text = "";
  for await (const piece of pieces) text += textOf(piece) ?? "";
  return text;
};
const tell = async (answers) => console.log(JSON.stringify(await Promise.all(answers)));
"""

OPENAI = """
const OpenAI = require("openai");
const client = new OpenAI({ baseURL: url, apiKey, maxRetries: 0 });
const options = { model: "poet", max_tokens: 12, temperature: 0.8, seed: 3 };
tell([
  client.chat.completions.create({ messages, ...options }).then((answer) => answer.choices[0].message.content),
  client.chat.completions.create({ messages, stream: true, ...options })
    .then((stream) => collected(stream, (piece) => piece.choices[0].delta.content)),
  client.completions.create({ prompt: "春眠", ...options }).then((answer) => answer.choices[0].text),
]);
"""

AI_SDK = """
const { generateText, streamText } = require("ai");
const { createOpenAICompatible } = require("@ai-sdk/openai-compatible");
const model = createOpenAICompatible({ name: "moyun", baseURL: url, apiKey, includeUsage: true })("poet");
const options = { model, messages, maxOutputTokens: 12, temperature: 0.8, seed: 3, maxRetries: 0 };
tell([
  generateText(options).then((answer) => answer.text),
  collected(streamText(options).textStream, (piece) => piece),
]);
"""


@pytest.fixture(scope="module")
def server(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    with real_server(tmp_path_factory.mktemp("server"), tokenizer.with_prompt_template("问：{src_txt}\n")) as running:
        yield running


@pytest.mark.parametrize(("package", "script"), [("openai", OPENAI), ("ai", AI_SDK)], ids=["openai", "ai"])
def test_chat_completions_and_streams(server: RealServer, package: str, script: str) -> None:
    node = shutil.which("node") or pytest.skip("no Node.js here")
    if subprocess.run([node, "-e", f"require.resolve('{package}')"], capture_output=True, check=False).returncode:
        pytest.skip(f"npm's {package} isn't in NODE_PATH")
    command = [node, "-e", BEGINNING + script, f"{server.url}/v1", server.key]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    expected = server.answer("春眠", max_new_tokens=12, temperature=0.8, seed=3)
    assert set(json.loads(done.stdout)) == {expected}
