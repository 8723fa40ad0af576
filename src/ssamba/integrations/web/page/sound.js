// Sounds: read files and the microphone as mono samples, resample them. Nothing here sends anything anywhere.
"use strict";

class SoundError extends Error {}

const MAX_SAMPLES = 120e6; // of all channels, in memory at once: 480 MB
const MAX_RECORDING_S = 60;
const FORMATS = "Browsers read WAV, FLAC, MP3, Ogg and mostly M4A";

const tag = (view, place) => String.fromCharCode(...new Uint8Array(view.buffer, view.byteOffset + place, 4));
const minutes = (seconds) =>
  seconds < 100 ? `${seconds.toFixed(0)} s` : seconds < 6000 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;

// A sound is {name, rate, channels, length in samples, read(first, stop) -> Float32Array, the mean of its channels}.
async function openSound(blob, name) {
  if (!blob.size) throw new SoundError(`${name} is empty: it has no bytes.`);
  let sound;
  try {
    sound = (await openWav(blob)) ?? (await decodeWhole(blob, name));
  } catch (error) {
    if (error instanceof SoundError) throw error;
    if (error.name === "NotReadableError" || error.name === "NotFoundError")
      throw new SoundError(`${name} cannot be opened: is it still there, and is it a file?`);
    throw new SoundError(`${name} cannot be read as sound. ${FORMATS}. If it plays elsewhere, convert it to WAV.`);
  }
  if (!sound.length) throw new SoundError(`${name} holds no sound: its length is 0 samples.`);
  return { ...sound, name };
}

// PCM WAV files are read in parts, so that their length does not matter; null for anything else.
async function openWav(blob) {
  const head = new DataView(await blob.slice(0, 12).arrayBuffer());
  if (head.byteLength < 12 || !["RIFF", "RF64"].includes(tag(head, 0)) || tag(head, 8) !== "WAVE") return null;
  let format = null;
  for (let place = 12; place + 8 <= blob.size; ) {
    const chunk = new DataView(await blob.slice(place, place + 48).arrayBuffer());
    const size = chunk.getUint32(4, true);
    if (tag(chunk, 0) === "fmt " && chunk.byteLength >= 24) {
      const code = chunk.getUint16(8, true);
      format = {
        isFloat: (code === 0xfffe && chunk.byteLength >= 34 ? chunk.getUint16(32, true) : code) === 3,
        code: code === 0xfffe && chunk.byteLength >= 34 ? chunk.getUint16(32, true) : code,
        channels: chunk.getUint16(10, true),
        rate: chunk.getUint32(12, true),
        bits: chunk.getUint16(22, true),
      };
    } else if (tag(chunk, 0) === "data") {
      const read = format && pcmReader(format);
      if (!read || !format.channels || !format.rate) return null;
      const frameBytes = (format.channels * format.bits) / 8;
      const bytes = Math.min(size, blob.size - place - 8); // 0xffffffff stands for "to the end"
      const start = place + 8;
      return {
        isCut: bytes < size && size < 0x7ffff000, // programs that do not know the length yet write more
        rate: format.rate,
        channels: format.channels,
        length: Math.floor(bytes / frameBytes),
        async read(first, stop) {
          const part = await blob.slice(start + first * frameBytes, start + stop * frameBytes).arrayBuffer();
          const view = new DataView(part), step = format.bits / 8, out = new Float32Array(stop - first);
          for (let i = 0, at = 0; i < out.length; i++) {
            let total = 0;
            for (let c = 0; c < format.channels; c++, at += step) total += read(view, at);
            out[i] = total / format.channels;
          }
          return out;
        },
      };
    }
    place += 8 + size + (size & 1);
  }
  return null;
}

function pcmReader({ code, isFloat, bits }) {
  if (isFloat) return { 32: (v, i) => v.getFloat32(i, true), 64: (v, i) => v.getFloat64(i, true) }[bits];
  if (code !== 1) return undefined;
  return {
    8: (v, i) => (v.getUint8(i) - 128) / 128,
    16: (v, i) => v.getInt16(i, true) / 32768,
    24: (v, i) => ((v.getUint8(i) << 8) | (v.getUint8(i + 1) << 16) | (v.getUint8(i + 2) << 24)) / 2147483648,
    32: (v, i) => v.getInt32(i, true) / 2147483648,
  }[bits];
}

// The browser decodes other formats as a whole, at the file's own rate, so that it does not resample.
async function decodeWhole(blob, name) {
  let head = new DataView(await blob.slice(0, 65536).arrayBuffer());
  if (head.byteLength > 10 && tag(head, 0).startsWith("ID3")) {
    const pictures = 10 + [6, 7, 8, 9].reduce((size, i) => (size << 7) | head.getUint8(i), 0);
    head = new DataView(await blob.slice(pictures, pictures + 65536).arrayBuffer());
  }
  const { rate, channels } = sniff(head);
  const seconds = await mediaSeconds(blob);
  const most = MAX_SAMPLES / rate / channels;
  if (seconds > most || (!Number.isFinite(seconds) && blob.size > 100e6)) {
    const length = Number.isFinite(seconds) ? `is ${minutes(seconds)} long` : `has ${(blob.size / 1e6).toFixed(0)} MB`;
    throw new SoundError(
      `${name} ${length}. A browser has to hold files like it in memory at once, and this page stops at ` +
        `${minutes(most)}. Cut it, or save it as WAV: of that any length can be read.`,
    );
  }
  let context;
  try {
    context = new OfflineAudioContext(1, 1, rate);
  } catch {
    context = new OfflineAudioContext(1, 1, 48000); // a rate that this browser does not have
  }
  const buffer = await context.decodeAudioData(await blob.arrayBuffer());
  return fromChannels(Array.from({ length: buffer.numberOfChannels }, (_, c) => buffer.getChannelData(c)), buffer.sampleRate);
}

function fromChannels(channels, rate) {
  return {
    rate,
    channels: channels.length,
    length: channels[0].length,
    async read(first, stop) {
      const out = channels[0].slice(first, stop);
      for (const other of channels.slice(1)) for (let i = 0; i < out.length; i++) out[i] += other[first + i];
      if (channels.length > 1) for (let i = 0; i < out.length; i++) out[i] /= channels.length;
      return out;
    },
  };
}

// Rate and channels as headers state them: FLAC, Ogg (Vorbis, Opus, FLAC), WAV, MP3; a guess for others.
function sniff(view) {
  const guess = { rate: 48000, channels: 2 };
  if (view.byteLength < 64) return guess;
  const flac = (at) => ({
    rate: (view.getUint16(at) << 4) | (view.getUint8(at + 2) >> 4),
    channels: ((view.getUint8(at + 2) >> 1) & 7) + 1,
  });
  if (tag(view, 0) === "fLaC") return flac(18);
  if (tag(view, 0) === "OggS") {
    const packet = 27 + view.getUint8(26);
    if (tag(view, packet + 1) === "vorb")
      return { rate: view.getUint32(packet + 12, true), channels: view.getUint8(packet + 11) };
    if (tag(view, packet) === "Opus") return { rate: 48000, channels: view.getUint8(packet + 9) };
    if (tag(view, packet + 1) === "FLAC") return flac(packet + 27);
    return guess;
  }
  if (tag(view, 0) === "RIFF" && tag(view, 12) === "fmt ") // of other codings than PCM
    return { rate: view.getUint32(24, true) || guess.rate, channels: view.getUint16(22, true) || guess.channels };
  for (let at = 0; at < Math.min(view.byteLength - 4, 4096); at++) {
    const word = view.getUint32(at);
    const version = (word >> 19) & 3, layer = (word >> 17) & 3, index = (word >> 10) & 3;
    if (word >>> 21 !== 0x7ff || version === 1 || layer === 0 || index === 3 || ((word >> 12) & 15) === 15) continue;
    const rate = [44100, 48000, 32000][index] / { 3: 1, 2: 2, 0: 4 }[version];
    return { rate, channels: ((word >> 6) & 3) === 3 ? 1 : 2 };
  }
  return guess;
}

const mediaSeconds = (blob) =>
  new Promise((resolve) => {
    const media = new Audio(), url = URL.createObjectURL(blob);
    const done = (seconds) => {
      URL.revokeObjectURL(url);
      resolve(seconds);
    };
    media.preload = "metadata";
    media.onloadedmetadata = () => done(media.duration);
    media.onerror = () => done(NaN);
    setTimeout(done, 5000, NaN);
    media.src = url;
  });

// A part of a sound at another rate: a sinc with a Kaiser window (120 dB, from 91.4 % of the lower rate's band on).
async function readResampled(sound, rate, start, count) {
  const ratio = sound.rate / rate; // input samples per output sample
  if (ratio === 1) return sound.read(start, start + count);
  const low = Math.min(1, 1 / ratio), half = Math.ceil(91 / low);
  const first = Math.max(0, Math.floor(start * ratio) - half);
  const stop = Math.min(sound.length, Math.ceil((start + count) * ratio) + half + 1);
  const given = await sound.read(first, stop);
  const out = new Float32Array(count), kernels = new Map();
  const common = gcd(sound.rate, rate), step = sound.rate / common, phases = rate / common;
  for (let i = 0; i < count; i++) {
    const place = (start + i) * step, floor = Math.floor(place / phases), phase = place - floor * phases;
    if (!kernels.has(phase)) kernels.set(phase, kernel(phase / phases, half, low));
    const taps = kernels.get(phase), shift = floor - half + 1 - first;
    let total = 0;
    for (let k = Math.max(0, -shift), end = Math.min(taps.length, given.length - shift); k < end; k++)
      total += taps[k] * given[shift + k];
    out[i] = total;
  }
  return out;
}

function kernel(offset, half, low) {
  const cutoff = 0.9568 * low, taps = new Float32Array(2 * half);
  for (let k = 0; k < taps.length; k++) {
    const t = k - half + 1 - offset, x = Math.PI * cutoff * t;
    const inside = Math.max(0, 1 - (t / half) ** 2);
    taps[k] = (cutoff * (x ? Math.sin(x) / x : 1) * bessel(12.27 * Math.sqrt(inside))) / bessel(12.27);
  }
  return taps;
}

function bessel(x) {
  let total = 1, term = 1;
  for (let k = 1; k < 60 && term > 1e-9 * total; k++) total += term *= (x / 2 / k) ** 2;
  return total;
}

const gcd = (a, b) => (b ? gcd(b, a % b) : a);

// The microphone, as uncompressed samples: {stop() -> sound}; `heard` is told the level and the seconds so far.
async function startRecording(heard, finished) {
  if (!navigator.mediaDevices?.getUserMedia)
    throw new SoundError("This page may not use a microphone here: browsers allow it on https:// and on this machine alone.");
  let stream;
  try {
    const plain = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    stream = await navigator.mediaDevices.getUserMedia({ audio: plain });
  } catch (error) {
    throw new SoundError(
      error.name === "NotAllowedError"
        ? "The microphone was refused. Allow it for this page in the browser's address bar, and try again."
        : error.name === "NotFoundError"
          ? "No microphone was found."
          : `The microphone cannot be used: ${error.message}`,
    );
  }
  const context = new AudioContext(), parts = [];
  const end = () => {
    for (const track of stream.getTracks()) track.stop();
    context.close();
  };
  const code = `registerProcessor("tap", class extends AudioWorkletProcessor {
    process([input]) { if (input.length) this.port.postMessage(input[0].slice()); return true; } });`;
  try {
    // Of a page on a disk, browsers load no worklet from a blob.
    await context.audioWorklet.addModule(`data:text/javascript,${encodeURIComponent(code)}`);
  } catch (error) {
    end();
    throw error;
  }
  const tap = new AudioWorkletNode(context, "tap", { numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit" });
  let length = 0, level = 0, stopped = false;
  tap.port.onmessage = ({ data }) => {
    if (stopped) return;
    parts.push(data);
    length += data.length;
    for (const value of data) level = Math.max(level * 0.9999, Math.abs(value));
    heard(level, length / context.sampleRate);
    if (length > MAX_RECORDING_S * context.sampleRate) finished();
  };
  context.createMediaStreamSource(stream).connect(tap);
  await context.resume();
  return {
    stop() {
      stopped = true;
      end();
      const samples = new Float32Array(length), rate = context.sampleRate;
      let at = 0;
      for (const part of parts) {
        samples.set(part, at);
        at += part.length;
      }
      if (!length) throw new SoundError("The microphone gave no sound.");
      return { ...fromChannels([samples], rate), name: "Your recording" };
    },
  };
}
