// Classifies what is typed, with MediaPipe's web text task. All files lie beside this one; `about.json` says what they are.

import { FilesetResolver, TextClassifier } from "./mediapipe/text_bundle.mjs";

const SHOWN = 5; // labels
const at = (id) => document.getElementById(id);
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
const number = new Intl.NumberFormat("en");

function say(words, state) {
  at("state").textContent = words;
  at("state").classList.toggle("bad", state === "failed");
  document.body.dataset.state = state;
}

function row({ categoryName, score }) {
  const line = document.createElement("li");
  const [label, share, bar] = ["span", "b", "meter"].map((kind) => line.appendChild(document.createElement(kind)));
  label.textContent = categoryName;
  share.textContent = `${(100 * score).toFixed(1)} %`;
  bar.value = score;
  line.dataset.score = score;
  return line;
}

function answer(classifier) {
  const text = at("text").value;
  if (!text.trim()) {
    at("answer").replaceChildren();
    at("time").textContent = "";
    say("Type a sentence, or take one of the examples.", "ready");
    return;
  }
  const begin = performance.now();
  const { categories } = classifier.classify(text).classifications[0];
  const spent = performance.now() - begin;
  const best = [...categories].sort((one, other) => other.score - one.score);
  at("answer").replaceChildren(...best.slice(0, SHOWN).map(row));
  const rest = best.length > SHOWN ? `, and ${number.format(best.length - SHOWN)} more labels` : "";
  at("time").textContent = `${spent.toFixed(1)} ms, from text to scores${rest}`;
  at("time").dataset.milliseconds = spent;
  say("", "answered");
}

async function start() {
  const about = await (await fetch("about.json")).json();
  at("name").textContent = about.name;
  document.title = `${about.name} · tfkd`;
  say(`Loading the model, ${megabytes(about.bytes)} …`, "loading");
  const [files, model] = await Promise.all([FilesetResolver.forTextTasks("mediapipe/wasm"), fetch(about.model)]);
  const modelAssetBuffer = new Uint8Array(await model.arrayBuffer());
  const classifier = await TextClassifier.createFromOptions(files, { baseOptions: { modelAssetBuffer } });
  classifier.classify("warm up"); // the first call allocates
  for (const text of about.examples) {
    const button = at("examples").appendChild(document.createElement("button"));
    button.type = "button";
    button.textContent = text;
    button.addEventListener("click", () => {
      at("text").value = text;
      answer(classifier);
    });
  }
  at("about").textContent = about.sentence;
  at("facts").textContent = about.facts;
  at("text").addEventListener("input", () => answer(classifier));
  at("text").disabled = false;
  at("text").focus();
  answer(classifier);
}

start().catch((error) => {
  const hint = location.protocol === "file:" ? " Browsers do not load models from files: serve this folder over HTTP." : "";
  say(`This page cannot run here: ${error.message ?? error}.${hint}`, "failed");
});
