
/* The live explorer: `mount` in a widget of a notebook, and a panel that answers the user's own prompts in Python.
   Values that page and Python share are listed in widget.py. */

const times = (factor) => factor.toFixed(1).replace("-", "−");

function panel(model, languages) {
  const changed = (field, value) => (model.set(field, value), model.save_changes());
  const text = make("textarea", { rows: 3, "aria-label": "Your prompt", placeholder: "Your prompt", dir: "auto" });
  const file = make("input", { type: "file", accept: "image/*", "aria-label": "Picture" });
  const language = make("select", { "aria-label": "Language of the prompt" }, ...languages.map((l) => make("option", { value: l, text: l })));
  const factor = make("input", { type: "range", min: -1, max: 2, step: 0.1, value: 0 });
  const chosen = make("span", { role: "status" });
  const before = make("div", { class: "trial" }), after = make("div", { class: "trial" }), problem = make("p", { class: "problem", role: "alert" });
  const run = make("button", { type: "button", class: "run", text: "Answer" });
  let picture = "", number = 0;

  const label = () => {
    chosen.textContent = `${count(model.get("neurons").length, "selected neuron")} × ${times(Number(factor.value))}`;
  };
  const ask = () => {
    if (!text.value.trim()) return void (problem.textContent = "Write a prompt first.");
    problem.textContent = "";
    run.disabled = true;
    run.textContent = "Answering …";
    number += 1;
    changed("asked", { number, text: text.value, picture, language: language.value, factor: Number(factor.value) });
  };
  const fill = (box, title, said) => {
    const outcome = said[1] ? make("span", { class: "tag", text: said[1] }) : null;
    box.replaceChildren(make("h3", { text: title }), outcome || "", make("p", { dir: "auto", text: said[0] || "(empty)", class: said[0] ? "" : "muted" }));
  };
  const reply = () => {
    const said = model.get("answered");
    if (!said || said.number !== number) return;
    run.disabled = false;
    run.textContent = "Answer";
    problem.textContent = said.error || "";
    if (said.error) return before.replaceChildren(), after.replaceChildren();
    fill(before, "as it is", said.before);
    fill(after, `${count(said.neurons, "neuron")} × ${times(said.factor)}`, said.after);
  };
  file.addEventListener("change", () => {
    picture = "";
    if (!file.files.length) return;
    const reader = new FileReader();
    reader.addEventListener("load", () => (picture = reader.result));
    reader.readAsDataURL(file.files[0]);
  });
  factor.addEventListener("input", label);
  factor.addEventListener("change", () => text.value.trim() && ask());
  run.addEventListener("click", ask);
  model.on("change:neurons", label);
  model.on("change:answered", reply);
  label();
  const scaling = make("div", { class: "line" }, make("label", {}, "factor ", factor), chosen);
  const box = make("section", { class: "live", "aria-label": "Your own prompt" },
    make("h2", { text: "Your own prompt" }),
    make("p", { class: "muted", text: "Answered as the model is, and with the selected neurons' values multiplied at the last token of the prompt: 0 ablates, 1 changes nothing. Marks in the list select neurons; without any it is the current one." }),
    make("div", { class: "ask" }, text, make("div", { class: "line" }, language, model.get("pictures") ? file : null, run)),
    scaling, problem, make("div", { class: "trials" }, before, after));
  return { box, scaling, end: () => (model.off("change:neurons", label), model.off("change:answered", reply)) };
}

function render({ model, el }) {
  const data = JSON.parse(JSON.stringify(model.get("data"))); // `mount` adds to it
  const own = panel(model, data.languages);
  const outer = make("div", { class: "explorer-live", "data-lm-suppress-shortcuts": "true" }); // keys are the page's, not JupyterLab's
  el.append(outer);
  const pick = (neurons) => (model.set("neurons", neurons), model.save_changes());
  const explorer = mount(outer, data, { onSelect: pick });
  const whole = make("button", { type: "button", text: `Select all ${model.get("whole").length} of the set`, onclick: () => (explorer.select(model.get("whole")), pick(model.get("whole"))) });
  own.scaling.append(whole);
  outer.querySelector(".explorer").append(own.box);
  outer.querySelector(".main").setAttribute("role", "group"); // the notebook is the page's main part
  explorer.select(model.get("neurons"));
  return () => (own.end(), explorer.remove());
}

export default { render };
