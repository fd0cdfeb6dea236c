// Elements and text. Whatever comes from outside becomes a text node or an attribute, never markup.
const make = (node, props, children) => {
  for (const [name, value] of Object.entries(props || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
};
const el = (tag, props, ...children) => make(document.createElement(tag), props, children);
const svg = (tag, props, ...children) => make(document.createElementNS("http://www.w3.org/2000/svg", tag), props, children);
const byId = (id) => document.getElementById(id);

const select = (label, choices, value, onchange) => {
  const options = choices.map(([key, text]) => el("option", { value: key, selected: key === value }, text));
  return el("label", { class: "field" }, el("span", {}, label),
    el("select", { "aria-label": label, onchange: (event) => onchange(event.target.value) }, options));
};

const range = (label, low, high, step, value, oninput) => {
  const input = el("input", { type: "range", min: low, max: high, step, value, "aria-label": label,
    oninput: () => oninput(Number(input.value)) });
  return input;
};
