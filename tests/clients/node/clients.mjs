// node clients.mjs CASE BASE_URL KEY MODEL: what a client makes of the texts on standard input.
import { readFileSync } from "node:fs";
import { createOpenAI } from "@ai-sdk/openai";
import { OpenAIEmbeddings } from "@langchain/openai";
import { embed, embedMany } from "ai";
import OpenAI from "openai";

const [name, baseURL, apiKey, model] = process.argv.slice(2);
const texts = JSON.parse(readFileSync(0, "utf-8"));
const sdk = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const vercel = createOpenAI({ baseURL, apiKey }).embedding(model);

const cases = {
  async openai() {
    const answer = await sdk.embeddings.create({ model, input: texts });
    return answer.data.map((item) => item.embedding);
  },
  async openai_query() {
    const answer = await sdk.embeddings.create({
      model, input: texts, input_type: "query", dimensions: 256, encoding_format: "float",
    });
    return answer.data.map((item) => item.embedding);
  },
  async openai_error() {
    try {
      await sdk.embeddings.create({ model: "gpt-4", input: texts });
      return null;
    } catch (error) {
      return [error.constructor.name, error.status, error.code, typeof error.requestID];
    }
  },
  async openai_batches() {
    const lines = texts.map((input, n) => JSON.stringify({
      custom_id: `${n}`, method: "POST", url: "/v1/embeddings", body: { input },
    }) + "\n").join("");
    const file = await sdk.files.create({
      file: await OpenAI.toFile(Buffer.from(lines), "in.jsonl"), purpose: "batch",
      expires_after: { anchor: "created_at", seconds: 3600 },
    });
    const listed = [];
    for await (const one of sdk.files.list()) listed.push(one.id);
    const content = await (await sdk.files.content(file.id)).text();
    const batch = await sdk.batches.create({
      input_file_id: file.id, endpoint: "/v1/embeddings", completion_window: "24h",
    });
    const batches = [];
    for await (const one of sdk.batches.list()) batches.push(one.id);
    const again = await sdk.batches.retrieve(batch.id);
    const cancelled = await sdk.batches.cancel(batch.id).catch((error) => error.status);
    const deleted = await sdk.files.delete(file.id);
    return [
      file.expires_at - file.created_at, `${listed}` === file.id, content === lines,
      `${batches}` === batch.id, again.input_file_id === file.id,
      cancelled === 409 || cancelled.id === batch.id, deleted.deleted,
    ];
  },
  async vercel() {
    const { embeddings } = await embedMany({ model: vercel, values: texts });
    return embeddings;
  },
  async vercel_one() {
    const { embedding, usage } = await embed({
      model: vercel, value: texts[0], providerOptions: { openai: { dimensions: 256 } },
    });
    return usage.tokens > 0 ? [embedding] : null;
  },
  async langchain() {
    const embeddings = new OpenAIEmbeddings({ model, apiKey, configuration: { baseURL } });
    return [...(await embeddings.embedDocuments(texts)), await embeddings.embedQuery(texts[0])];
  },
};

console.log(JSON.stringify(await cases[name]()));
