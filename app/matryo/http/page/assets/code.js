// A request for vectors as code to copy. Pure: texts in, text out.

/** What stands for the reader's key. */
export const KEY = "YOUR_KEY";

const MOST_ARGUMENT = 100_000; // bytes; Linux takes 131,072 of one argument

/** The languages, in the order that they are offered in. */
export const LANGUAGES = { curl, python: inPython, javascript: inJavaScript };

/**
 * For sh, bash and zsh. In single quotes nothing has a meaning but the single quote itself.
 * @param {string} root URL of the server's root, with a slash at its end
 * @param {object} body of the request
 * @param {boolean} hasKey whether the server asks for a key
 */
export function curl(root, body, hasKey) {
  const json = JSON.stringify(body);
  const head = [
    `curl ${quoted(`${root}v1/embeddings`)}`,
    hasKey && `-H 'Authorization: Bearer ${KEY}'`,
    "-H 'Content-Type: application/json'",
  ].filter(Boolean);
  if (new TextEncoder().encode(json).length <= MOST_ARGUMENT) {
    return `${[...head, `-d ${quoted(json)}`].join(" \\\n  ")}\n`;
  }
  // A body of JSON is one line that begins with a brace, so it never ends the document.
  return `${[...head, "--data-binary @- <<'END'"].join(" \\\n  ")}\n${json}\nEND\n`;
}

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** With OpenAI's SDK. A string of JSON is one of Python, too. */
export function inPython(root, body, hasKey) {
  const { model, input, dimensions, ...extra } = body;
  const lines = [
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${JSON.stringify(`${root}v1`)}, api_key="${hasKey ? KEY : "none"}")`,
    "answer = client.embeddings.create(",
    `    model=${JSON.stringify(model)},`,
    "    input=[",
    ...input.map((text) => `        ${JSON.stringify(text)},`),
    "    ],",
    dimensions && `    dimensions=${dimensions},`,
    '    encoding_format="float",',
    `    extra_body={${Object.entries(extra).map(([name, value]) => `"${name}": ${literal(value)}`).join(", ")}},`,
    ")",
    "vectors = [item.embedding for item in answer.data]",
    "print(len(vectors), len(vectors[0]))",
  ];
  return `${lines.filter((line) => line !== undefined).join("\n")}\n`;
}

function literal(value) {
  return value === true ? "True" : JSON.stringify(value);
}

/** With `fetch`, for browsers and Node. */
export function inJavaScript(root, body, hasKey) {
  const key = hasKey ? [`    authorization: "Bearer ${KEY}",`] : [];
  const fields = JSON.stringify(body, null, 2).replaceAll("\n", "\n  ");
  return [
    `const response = await fetch(${JSON.stringify(`${root}v1/embeddings`)}, {`,
    '  method: "POST",',
    "  headers: {",
    ...key,
    '    "content-type": "application/json",',
    "  },",
    `  body: JSON.stringify(${fields}),`,
    "});",
    "if (!response.ok) throw new Error(await response.text());",
    "const { data } = await response.json();",
    "const vectors = data.map(({ embedding }) => embedding);",
    "console.log(vectors.length, vectors[0].length);",
    "",
  ].join("\n");
}
