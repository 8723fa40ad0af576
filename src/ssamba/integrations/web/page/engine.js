// The model: data that scripts hand over, and a worker that runs onnxruntime-web.
"use strict";

const arrivals = {};
function ssambaData(name, value) {
  arrivals[name](value);
}

function loadData(name) {
  return new Promise((resolve, reject) => {
    arrivals[name] = resolve;
    const script = document.createElement("script");
    script.src = `data/${name}.js`;
    script.onload = () => script.remove();
    script.onerror = () => reject(new Error(`data/${name}.js cannot be loaded: is the whole folder there?`));
    document.head.append(script);
  });
}

const fromBase64 = (text) =>
  Uint8Array.fromBase64 ? Uint8Array.fromBase64(text) : Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
const floatsFrom = (text) => new Float32Array(fromBase64(text).buffer);

// Runs in the worker, after onnxruntime-web's script.
function workerMain() {
  let session;
  const answers = {
    async load({ module, wasm, model }) {
      ort.env.wasm.numThreads = 1; // more need a server that isolates the page
      ort.env.wasm.wasmPaths = { mjs: URL.createObjectURL(new Blob([module], { type: "text/javascript" })) };
      ort.env.wasm.wasmBinary = wasm.buffer;
      session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
      return {};
    },
    async run({ wave }) {
      const wanted = ["clip", "features", "probabilities"].filter((name) => session.outputNames.includes(name));
      const started = performance.now();
      const lengths = new ort.Tensor("int64", BigInt64Array.of(BigInt(wave.length)), [1]);
      const inputs = { waveform: new ort.Tensor("float32", wave, [1, wave.length]), lengths };
      const outputs = await session.run(inputs, wanted);
      const found = { ms: performance.now() - started };
      for (const name of wanted) found[name] = { values: outputs[name].data, shape: outputs[name].dims.map(Number) };
      return found;
    },
  };
  onmessage = async ({ data: { id, kind, ...values } }) => {
    try {
      postMessage({ id, result: await answers[kind](values) });
    } catch (error) {
      postMessage({ id, error: String(error.message ?? error) });
    }
  };
}

class Engine {
  static async load() {
    const [runtime, model] = await Promise.all([loadData("runtime"), loadData("model")]);
    const text = (name) => new TextDecoder().decode(fromBase64(runtime[name]));
    const engine = new Engine();
    const code = [text("ort.wasm.min.js"), `\n(${workerMain})();`];
    engine.worker = new Worker(URL.createObjectURL(new Blob(code, { type: "text/javascript" })));
    engine.waiting = new Map();
    engine.worker.onmessage = ({ data: { id, result, error } }) => {
      const { resolve, reject } = engine.waiting.get(id);
      engine.waiting.delete(id);
      error ? reject(new Error(error)) : resolve(result);
    };
    engine.worker.onerror = (event) => {
      for (const { reject } of engine.waiting.values()) reject(new Error(event.message ?? "the worker stopped"));
    };
    const wasm = fromBase64(runtime["ort-wasm-simd-threaded.wasm"]), bytes = fromBase64(model);
    const parts = { module: text("ort-wasm-simd-threaded.mjs"), wasm, model: bytes };
    await engine.ask("load", parts, [wasm.buffer, bytes.buffer]);
    return engine;
  }

  ask(kind, values, transferred = []) {
    const id = (this.asked = (this.asked ?? 0) + 1);
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject });
      this.worker.postMessage({ id, kind, ...values }, transferred);
    });
  }

  // wave (S,) at the model's rate -> {clip, features, probabilities}, each {values, shape}, and ms.
  run(wave) {
    return this.ask("run", { wave });
  }
}
