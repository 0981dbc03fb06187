// Every request of the page. Nothing leaves the origin that the page came from.

/** A refusal, or an answer that did not come: status 0. */
export class ApiError extends Error {
  constructor(status, message, { code = null, type = null, retryAfterS = null } = {}) {
    super(message);
    this.name = "ApiError";
    Object.assign(this, { status, code, type, retryAfterS });
  }
}

/** Whether a text can be a key; another cannot be sent. */
export const isKey = (text) => /^[\x21-\x7e]+$/.test(text);
export const NO_KEY = "A key has no blanks, and no characters outside of ASCII.";

const MAX_TEXTS = 256; // of one request, so that progress can be shown
const MAX_CHARS = 200_000;
const MAX_WAITS = 6; // times that a request is sent again after a 429 or 503
const LONGEST_WAIT_S = 60;

const ARRAYS = { float32: Float32Array, int8: Int8Array, uint8: Uint8Array };

/** The body of a request for vectors, as the page sends it and shows it. */
export function embedBody(texts, { model, inputType, dimensions, embeddingType }) {
  const body = { model, input: texts };
  if (inputType) body.input_type = inputType;
  if (dimensions !== undefined) body.dimensions = dimensions;
  if (embeddingType && embeddingType !== "float") body.embedding_type = embeddingType;
  body.truncate = true;
  return body;
}

export class Api {
  /**
   * @param base URL of the server's root, with a slash at its end.
   * @param onWait called with the seconds and the server's message before a request that was
   *   refused for now is sent again, and with null when it goes.
   */
  constructor(base, onWait = () => {}) {
    this.base = base;
    this.key = null;
    this.metricsKey = null;
    this.onWait = onWait;
  }

  /** The URL of a path, such as `v1/embeddings`. */
  url(path) {
    return new URL(path, this.base).href;
  }

  /** Facts of each model that the key may use, the default first. */
  async models() {
    const list = await this.#json("v1/models");
    return Promise.all(list.data.map(({ id }) => this.#json(`v1/models/${encodeURIComponent(id)}`)));
  }

  /** `{ready, reason}`; a rejection means that the server does not answer. */
  async ready() {
    const response = await this.#fetch("readyz", {});
    const { status, reason } = (await response.json().catch(() => null)) ?? {};
    return { ready: response.ok && status === "ok", reason: reason ?? `status ${response.status}` };
  }

  /** Prometheus' text. */
  async metrics() {
    const headers = { accept: "text/plain" };
    if (this.metricsKey) headers.authorization = `Bearer ${this.metricsKey}`;
    const response = await this.#fetch("metrics", { headers });
    if (!response.ok) throw await refusal(response);
    return response.text();
  }

  /** TEI's tokens of each text, by the server's default model. */
  async tokenize(texts, { promptName, signal } = {}) {
    const body = { inputs: texts };
    if (promptName) body.prompt_name = promptName;
    const response = await this.#send("tokenize", post(body, signal));
    return response.json();
  }

  /**
   * Vectors of texts, in several requests if there are many.
   *
   * @param texts none of them empty.
   * @param options model, inputType, dimensions, embeddingType; absent ones are the server's
   *   choice. `limits` and `fingerprint` of the model's facts, so that vectors of another model under
   *   its name are refused; `onProgress(done, all)`; `signal` to give up.
   * @returns `{rows, requests, fingerprint, model, tokens, truncated, unknown, warning}`; a row is a
   *   Float32Array, Int8Array or Uint8Array.
   */
  async embed(texts, { limits = {}, fingerprint, onProgress = () => {}, signal, ...options } = {}) {
    const most = Math.min(MAX_TEXTS, limits.max_inputs ?? MAX_TEXTS);
    const all = { rows: [], requests: 0, fingerprint, tokens: 0, truncated: 0, unknown: 0, warnings: new Set() };
    for (const part of parts(texts, most)) {
      await this.#part(part, options, signal, all);
      onProgress(all.rows.length, texts.length);
    }
    const { warnings, ...rest } = all;
    return { ...rest, warning: [...warnings].join("; ") || null };
  }

  async #part(texts, options, signal, all) {
    const init = post(embedBody(texts, options), signal);
    init.headers.accept = "application/octet-stream";
    // The server may have started anew, with another model.
    if (all.fingerprint) init.headers["x-matryo-expect-fingerprint"] = all.fingerprint;
    let response;
    try {
      response = await this.#send("v1/embeddings", init);
    } catch (error) {
      const isLarge = error.status === 413 || error.type === "max_tokens_per_request";
      if (!isLarge || texts.length === 1) throw error;
      const half = Math.ceil(texts.length / 2);
      await this.#part(texts.slice(0, half), options, signal, all);
      await this.#part(texts.slice(half), options, signal, all);
      return;
    }
    const header = (name) => response.headers.get(`x-matryo-${name}`);
    const [n, size] = header("shape").split(",").map(Number);
    const numbers = new ARRAYS[header("dtype")](await response.arrayBuffer());
    for (let row = 0; row < n; row++) all.rows.push(numbers.subarray(row * size, (row + 1) * size));
    all.requests++;
    all.fingerprint = header("fingerprint");
    all.model = header("model");
    all.tokens += Number(header("prompt-tokens"));
    all.truncated += Number(header("truncated"));
    all.unknown += Number(header("unknown"));
    if (header("warning")) all.warnings.add(header("warning"));
  }

  async #json(path) {
    const response = await this.#send(path, { headers: {} });
    try {
      return await response.json();
    } catch {
      throw new ApiError(response.status, "The answer is not the server's. A proxy before the server may ask for a login.");
    }
  }

  /** An answer of 2xx; a refusal that a wait helps against is waited for. */
  async #send(path, init) {
    if (this.key) init.headers.authorization = `Bearer ${this.key}`;
    for (let waits = 0; ; waits++) {
      const response = await this.#fetch(path, init);
      if (response.ok) return response;
      const error = await refusal(response);
      const isWorth = error.retryAfterS !== null && error.retryAfterS <= LONGEST_WAIT_S;
      if (!isWorth || waits === MAX_WAITS) throw error;
      this.onWait(error.retryAfterS, error);
      try {
        await pause(error.retryAfterS * 1000, init.signal);
      } finally {
        this.onWait(null);
      }
    }
  }

  async #fetch(path, init) {
    try {
      return await fetch(this.url(path), { cache: "no-store", credentials: "omit", ...init });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, "The server does not answer.");
    }
  }
}

function post(body, signal) {
  const headers = { "content-type": "application/json" };
  return { method: "POST", headers, body: JSON.stringify(body), signal };
}

function* parts(texts, most) {
  let part = [];
  let chars = 0;
  for (const text of texts) {
    if (part.length === most || (part.length && chars + text.length > MAX_CHARS)) {
      yield part;
      part = [];
      chars = 0;
    }
    part.push(text);
    chars += text.length;
  }
  if (part.length) yield part;
}

/** What an answer of 4xx or 5xx says, in OpenAI's or TEI's form. */
async function refusal(response) {
  const text = await response.text().catch(() => "");
  let error = {};
  try {
    const body = JSON.parse(text);
    error = typeof body.error === "string" ? { message: body.error } : (body.error ?? {});
  } catch {
    // A proxy's page, of which nothing is shown but the status.
  }
  const header = (name) => response.headers.get(name);
  const ms = header("retry-after-ms") ?? (header("retry-after") ?? NaN) * 1000;
  const isHopeless = header("x-should-retry") === "false" || ![429, 503].includes(response.status);
  return new ApiError(response.status, error.message ?? `The answer has the status ${response.status}.`, {
    code: error.code ?? null,
    type: error.type ?? null,
    retryAfterS: isHopeless || !Number.isFinite(Number(ms)) ? null : Number(ms) / 1000,
  });
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
