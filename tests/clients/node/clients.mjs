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
