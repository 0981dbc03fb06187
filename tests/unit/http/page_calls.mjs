// Calls functions of a file of the page: from stdin {"file", "calls": [[function, ...arguments]]},
// to stdout a list of results. {"float32": [...]} stands for a Float32Array.
import { readFileSync } from "node:fs";

const revive = (_, value) => (value?.float32 ? Float32Array.from(value.float32) : value);
const plain = (_, value) => (ArrayBuffer.isView(value) ? Array.from(value) : value);

const { file, calls } = JSON.parse(readFileSync(0, "utf-8"), revive);
const functions = await import(file);
const results = [];
for (const [name, ...given] of calls) {
  try {
    results.push(await functions[name](...given));
  } catch (error) {
    results.push({ error: error.message });
  }
}
process.stdout.write(JSON.stringify(results, plain));
