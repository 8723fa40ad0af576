// What the page shows and does. `window.ssamba.result` holds what was computed last.
"use strict";

const $ = (id) => document.getElementById(id);
const NEAREST = 6, LABELS = 6, TRIES = 14;
// Quiet to loud. On paper as printed sonograms are, in the dark as a screen glows.
const COLORS = {
  light: ["#ffffff", "#dcefe6", "#8fcdb1", "#35957a", "#0f5a5c", "#08222f"],
  dark: ["#12181b", "#143a41", "#15705f", "#3fae6c", "#b4dd66", "#fdf8c0"],
};
const PLAY = '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M8 5v14l11-7z"/></svg>';
const STOP = '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M7 6h4v12H7zM13 6h4v12h-4z"/></svg>';
const darkness = matchMedia("(prefers-color-scheme: dark)");

window.ssamba = { result: null };
let page, engine, sound, busy = false, queued = null, recording = null;

const element = (kind, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(kind), properties);
  made.append(...children);
  return made;
};
// Seconds, or minutes and seconds if the whole has a minute.
const clock = (seconds, whole = seconds) => {
  if (whole < 59.95) return seconds.toFixed(1);
  const tenths = Math.round(seconds * 10), h = Math.floor(tenths / 36000), m = Math.floor(tenths / 600) % 60;
  return `${h ? `${h}:${String(m).padStart(2, "0")}` : m}:${((tenths % 600) / 10).toFixed(1).padStart(4, "0")}`;
};
const clockWithUnit = (seconds) =>
  seconds < 0.95 ? `${Math.round(seconds * 1000)} ms` : clock(seconds) + (seconds < 59.95 ? " s" : "");
const spoken = (name) => name.replaceAll("_", " ");

function show(state, message = "") {
  document.body.dataset.state = state;
  const failed = state === "error";
  $("error").hidden = !failed;
  $("error").textContent = failed ? message : "";
  $("status").textContent = failed ? "" : message;
}

function fail(error) {
  stopPlaying();
  if (!(error instanceof SoundError)) console.error(error);
  if (!sound) $("result").hidden = true;
  show("error", error instanceof SoundError ? error.message : `Something went wrong: ${error.message}`);
}

// ---------------------------------------------------------------- start

async function start() {
  try {
    page = await loadData("page");
    page.space = Object.fromEntries(Object.entries(page.space).map(([name, text]) => [name, floatsFrom(text)]));
    describe();
    engine = await Engine.load();
    show("ready", "Ready.");
    const first = queued;
    queued = null;
    if (first) open(first);
  } catch (error) {
    const missing = typeof WebAssembly === "undefined" ? "this browser has no WebAssembly" : error.message;
    fail(new SoundError(`The model cannot be started: ${missing}`));
  }
}

function describe() {
  $("model").textContent = page.model;
  if (page.labels) $("title").textContent = "What is in this recording?";
  document.title = `${page.model}: ${$("title").textContent}`;
  const tries = page.sounds.slice(0, TRIES).map((one, k) => {
    const button = element("button", { type: "button", className: "chip", textContent: spoken(one.name) });
    button.onclick = () => open({ name: one.name, index: k });
    return button;
  });
  $("tries").append(element("span", { textContent: "or try" }), ...tries);
  const licenses = element("a", { href: "licenses.txt", textContent: "Licenses and sources" });
  const facts = `${page.model} (${page.license}), ssamba ${page.ssamba_version}, ${page.runtime}. `;
  $("footer").append(element("p", {}, facts, licenses), element("p", {
    textContent: "The page's security policy makes the browser refuse every connection, so recordings stay here.",
  }));
}

// ---------------------------------------------------------------- a sound comes in

// asked: {name, blob}, {name, index} of the page's own sounds, or {name, sound}.
async function open(asked) {
  if (!engine) {
    queued = asked;
    return show("loading", `Loading the model … ${spoken(asked.name)} is next.`);
  }
  if (busy) return void (queued = asked);
  busy = true;
  stopPlaying();
  show("working", `Reading ${spoken(asked.name)} …`);
  try {
    const opened = asked.sound ?? (await openSound(asked.blob ?? (await ownSound(asked.index)), asked.name));
    if ((opened.length / opened.rate) * page.sample_rate_hz < page.frame_samples)
      throw new SoundError(`${asked.name} is too short: a sound has at least ${(page.frame_samples / page.sample_rate_hz) * 1000} ms.`);
    await analyze({ ...opened, index: asked.index ?? null }, 0);
    $("name").focus({ preventScroll: true });
    $("result").scrollIntoView({ block: "nearest", behavior: calm() ? "auto" : "smooth" });
  } catch (error) {
    sound = null;
    window.ssamba.result = null;
    fail(error);
  }
  busy = false;
  const next = queued;
  queued = null;
  if (next) next.name ? open(next) : change(next);
}

const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
const ownSounds = new Map();
async function ownSound(index) {
  if (!ownSounds.has(index)) ownSounds.set(index, new Blob([fromBase64(await loadData(`sound_${index}`))]));
  return ownSounds.get(index);
}

// Another part of the same recording.
async function change(at) {
  if (busy) return void (queued = at);
  busy = true;
  try {
    await analyze(sound, at.start_s);
  } catch (error) {
    fail(error);
  }
  busy = false;
  const next = queued;
  queued = null;
  if (next) next.name ? open(next) : change(next);
}

async function analyze(opened, start_s) {
  const rate = page.sample_rate_hz, whole = opened.length / opened.rate;
  const total = Math.round((opened.length * rate) / opened.rate);
  const isWhole = whole <= page.whole_s;
  const count = isWhole ? total : Math.min(Math.round(page.window_s * rate), total);
  const first = Math.min(Math.round(start_s * rate), total - count); // the last part ends with the recording
  show("working", `Listening to ${spoken(opened.name)} …`);
  const wave = await readResampled(opened, rate, first, count);
  if (!wave.every(Number.isFinite)) throw new SoundError(`${opened.name} holds values that are no numbers (NaN or infinity).`);
  const found = await engine.run(wave);
  if (!found.clip.values.every(Number.isFinite))
    throw new SoundError(`${opened.name} holds values far outside [-1, 1], of which the model makes nothing.`);
  const isNew = sound !== opened;
  sound = opened;
  const seconds = count / rate;
  const silent = wave.every((value) => value === 0);
  const nearest = neighbors(found.clip.values, opened.index);
  window.ssamba.result = {
    name: opened.name, start_s: first / rate, seconds, nearest, ms: found.ms, samples: count,
    clip: Array.from(found.clip.values), frames: found.features.shape[1],
    features: found.features, probabilities: found.probabilities ?? null,
  };
  $("result").hidden = false;
  $("name").textContent = spoken(opened.name);
  const kind = `${(opened.rate / 1000).toLocaleString("en")} kHz, ${opened.channels === 1 ? "mono" : `${opened.channels} channels`}`;
  $("facts").textContent = `${clockWithUnit(whole)} · ${kind}${silent ? " · this part is silent" : ""}${opened.isCut ? " · the file is cut off" : ""}`;
  showPart(isWhole, whole, first / rate, seconds, isNew);
  drawFeatures();
  drawLabels(found.probabilities);
  drawNearest(nearest);
  const spent = found.ms < 1000 ? `${found.ms.toFixed(0)} ms` : `${(found.ms / 1000).toFixed(1)} s`;
  show("done", `${clockWithUnit(seconds)} of sound, computed in ${spent}.`);
}

function showPart(isWhole, whole, start_s, seconds, isNew) {
  $("part").hidden = isWhole;
  const slider = $("start"), text = `${clock(start_s, whole)} to ${clock(start_s + seconds, whole)} of ${clockWithUnit(whole)}`;
  const step = whole > 600 ? 5 : 0.5;
  slider.step = step;
  slider.max = Math.ceil(Math.max(0, whole - page.window_s) / step) * step;
  if (isNew) slider.value = start_s; // else somebody may be moving it
  slider.setAttribute("aria-valuetext", text);
  $("part-text").textContent = text;
}

// ---------------------------------------------------------------- similarity, as ssamba.similarity has it

function neighbors(clip, own) {
  const { mean, rotation, rows } = page.space, dims = mean.length, width = rotation.length / dims;
  const query = new Float64Array(width);
  for (let d = 0; d < dims; d++) {
    const value = clip[d] - mean[d];
    for (let k = 0; k < width; k++) query[k] += value * rotation[d * width + k];
  }
  const norm = Math.max(Math.hypot(...query), 1e-12);
  return page.sounds
    .map(({ name }, index) => {
      let product = 0;
      for (let k = 0; k < width; k++) product += query[k] * rows[index * width + k];
      return { index, name, similarity: product / norm };
    })
    .filter(({ index }) => index !== own)
    .sort((a, b) => b.similarity - a.similarity)
    .slice(0, NEAREST);
}

// ---------------------------------------------------------------- pictures

function palette() {
  const stops = COLORS[darkness.matches ? "dark" : "light"].map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  return Uint32Array.from({ length: 256 }, (_, level) => {
    const place = (level / 255) * (stops.length - 1), below = Math.min(Math.floor(place), stops.length - 2);
    const [r, g, b] = stops[below].map((from, i) => Math.round(from + (stops[below + 1][i] - from) * (place - below)));
    return (255 << 24) | (b << 16) | (g << 8) | r;
  });
}

// levels 0 to 255, (width, height) with the lowest frequency first.
function draw(canvas, width, height, levels) {
  canvas.width = width;
  canvas.height = height;
  const colors = palette(), pixels = new Uint32Array(width * height);
  for (let t = 0; t < width; t++)
    for (let m = 0; m < height; m++) pixels[(height - 1 - m) * width + t] = colors[levels[t * height + m]];
  canvas.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(pixels.buffer), width, height), 0, 0);
}

function drawFeatures() {
  const { features, seconds, name, start_s } = window.ssamba.result;
  const { values, shape: [, frames, bins] } = features;
  const sorted = Float32Array.from(values).sort(), at = (share) => sorted[Math.floor(share * (sorted.length - 1))];
  const low = at(0.1), scale = 255 / Math.max(at(0.998) - low, 1e-6);
  draw($("spectrogram"), frames, bins, Uint8ClampedArray.from(values, (value) => (value - low) * scale));
  $("spectrogram").setAttribute("aria-label", `Spectrogram of ${spoken(name)}, ${clockWithUnit(seconds)}`);
  $("hertz").replaceChildren(...page.ticks.map(([bin, text]) => {
    const tick = element("span", { textContent: text });
    tick.style.bottom = `${(Math.min(bin + 0.5, bins) / bins) * 100}%`;
    return tick;
  }));
  const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20].find((one) => seconds / one <= 8) ?? 60;
  const ticks = [];
  for (let k = Math.ceil(start_s / step - 1e-6); k * step < start_s + seconds * 0.96; k++) {
    const long = start_s + seconds >= 60;
    const tick = element("span", { textContent: long ? clock(k * step, 60).replace(/\.0$/, "") : String(+(k * step).toFixed(1)) });
    tick.style.left = `${((k * step - start_s) / seconds) * 100}%`;
    ticks.push(tick);
  }
  $("seconds").replaceChildren(...ticks, element("span", { className: "unit", textContent: "s" }));
}

function drawLabels(probabilities) {
  $("labels").hidden = !page.labels || !probabilities;
  if ($("labels").hidden) return;
  const { values, shape } = probabilities, classes = page.labels.length, spans = shape.length === 3 ? shape[1] : 1;
  const { start_s } = window.ssamba.result, whole = sound.length / sound.rate;
  const time = (second) => clock(Math.floor(start_s + second), whole).replace(/\.0$/, "") + (whole < 59.95 ? " s" : "");
  const all = page.labels.map((label, c) => {
    let best = 0;
    for (let s = 1; s < spans; s++) if (values[s * classes + c] > values[best * classes + c]) best = s;
    return { label, value: values[best * classes + c], when: spans > 1 ? ` at ${time(best)}` : "" };
  });
  all.sort((a, b) => b.value - a.value);
  $("bars").replaceChildren(...all.slice(0, LABELS).map(({ label, value, when }) => {
    const meter = element("span", { className: "meter", ariaHidden: "true" }, element("i"));
    meter.firstChild.style.width = `${value * 100}%`;
    const percent = element("span", { className: "percent", textContent: `${(value * 100).toFixed(value < 0.0995 ? 1 : 0)} %${when}` });
    return element("li", {}, element("span", { className: "label", textContent: label }), meter, percent);
  }));
}

const pictures = new Map();
function drawNearest(nearest) {
  pictures.clear();
  $("near").replaceChildren(...nearest.map(({ index, name, similarity }) => {
    const one = page.sounds[index], canvas = element("canvas", { ariaHidden: "true" });
    pictures.set(canvas, one.picture);
    const button = element("button", { type: "button", className: "card" },
      element("span", { className: "picture" }, canvas, element("span", { className: "sign", innerHTML: PLAY })),
      element("b", { textContent: spoken(name) }),
      element("span", { className: "row facts" },
        element("span", { textContent: `${one.seconds.toFixed(1)} s` }),
        element("span", { textContent: `similarity ${similarity.toFixed(2)}` })));
    button.setAttribute("aria-label", `Play ${spoken(name)}, similarity ${similarity.toFixed(2)}`);
    button.onclick = () => play(button, async () => {
      const own = await openSound(await ownSound(index), name);
      return { samples: await own.read(0, own.length), rate: own.rate };
    });
    return element("li", {}, button);
  }));
  drawPictures();
}

function drawPictures() {
  for (const [canvas, { width, height, levels }] of pictures) draw(canvas, width, height, fromBase64(levels));
}

// ---------------------------------------------------------------- playing

let speaker, playing = null;

function stopPlaying() {
  if (!playing) return;
  const { button, source } = playing;
  playing = null;
  source.onended = null;
  source.stop();
  mark(button, false);
  $("playhead").hidden = true;
}

function mark(button, isOn) {
  button.classList.toggle("on", isOn);
  button.setAttribute("aria-pressed", isOn);
  const sign = button.querySelector(".sign") ?? button;
  sign.innerHTML = isOn ? STOP : PLAY;
}

async function play(button, samplesOf) {
  const wasOn = playing?.button === button;
  stopPlaying();
  if (wasOn) return;
  try {
    speaker ??= new AudioContext();
    speaker.resume();
    const { samples, rate } = await samplesOf();
    stopPlaying(); // another one, clicked meanwhile
    const buffer = new AudioBuffer({ length: samples.length, numberOfChannels: 1, sampleRate: rate });
    buffer.copyToChannel(samples, 0);
    const speed = 1 / page.time_expansion; // ultrasound is played as slowly as the model hears it
    const source = new AudioBufferSourceNode(speaker, { buffer, playbackRate: speed });
    source.connect(speaker.destination);
    source.onended = stopPlaying;
    playing = { button, source };
    mark(button, true);
    source.start();
    const began = speaker.currentTime;
    const move = () => {
      if (playing?.source !== source) return;
      const share = Math.min(1, ((speaker.currentTime - began) * speed) / buffer.duration);
      button.style.setProperty("--played", share);
      if (button === $("play")) {
        $("playhead").hidden = false;
        $("playhead").style.left = `${share * 100}%`;
      }
      requestAnimationFrame(move);
    };
    move();
  } catch (error) {
    fail(error instanceof SoundError ? error : new SoundError(`This sound cannot be played: ${error.message}`));
  }
}

// ---------------------------------------------------------------- what people do

$("play").innerHTML = PLAY;
$("play").onclick = () => play($("play"), async () => {
  const { start_s, seconds } = window.ssamba.result;
  const first = Math.round(start_s * sound.rate), stop = Math.min(sound.length, first + Math.round(seconds * sound.rate));
  return { samples: await sound.read(first, stop), rate: sound.rate };
});

$("file").onchange = ({ target }) => {
  const [file] = target.files;
  if (file) open({ name: file.name, blob: file });
  target.value = "";
};

let entered = 0;
const setOver = (isOver) => document.body.classList.toggle("over", isOver);
addEventListener("dragenter", (event) => (event.preventDefault(), entered++, setOver(true)));
addEventListener("dragleave", () => (entered = Math.max(0, entered - 1)) || setOver(false));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  entered = 0;
  setOver(false);
  const [file] = event.dataTransfer.files;
  if (!file) return fail(new SoundError("That is no file. Drop a recording from a folder of this machine."));
  open({ name: file.name, blob: file });
});

let waiting;
$("start").oninput = ({ target }) => {
  stopPlaying();
  const start_s = Number(target.value);
  const whole = sound.length / sound.rate;
  $("part-text").textContent = `${clock(start_s, whole)} to ${clock(start_s + page.window_s, whole)} of ${clockWithUnit(whole)}`;
  clearTimeout(waiting);
  waiting = setTimeout(() => sound && change({ start_s }), 200);
};

$("record").onclick = async () => {
  const button = $("record"), text = $("record-text");
  if (recording === "asking") return;
  if (recording) return finishRecording();
  try {
    stopPlaying();
    recording = "asking";
    show("working", "Waiting for the microphone …");
    recording = await startRecording((level, seconds) => {
      text.textContent = `Stop  ${seconds.toFixed(1)} s`;
      button.style.setProperty("--level", Math.min(1, level * 2).toFixed(2));
    }, finishRecording);
    button.classList.add("on");
    button.setAttribute("aria-pressed", "true");
    text.textContent = "Stop";
    show("recording", "Recording. Press the button again to stop.");
  } catch (error) {
    recording = null;
    fail(error);
  }
};

function finishRecording() {
  const finished = recording;
  if (!finished?.stop) return;
  recording = null;
  $("record").classList.remove("on");
  $("record").setAttribute("aria-pressed", "false");
  $("record-text").textContent = "Record";
  try {
    open({ name: "Your recording", sound: finished.stop() });
  } catch (error) {
    fail(error);
  }
}

darkness.addEventListener("change", () => {
  if (window.ssamba.result) drawFeatures();
  drawPictures();
});

start();
