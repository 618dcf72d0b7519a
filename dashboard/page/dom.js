// The little of the DOM that everything here needs.

export const $ = (id) => document.getElementById(id);

// An element with a class, a text or children. Texts from devices only ever go in as text.
export function el(name, options = {}, ...children) {
  const made = document.createElement(name);
  const { class: classes, text, ...rest } = options;
  if (classes) made.className = classes;
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(rest)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// Writing what is there already would make the browser, and a screen reader, do work for nothing.
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Children of `parent` that show `items`, each made once for its key and then only updated.
export function keyed(parent, items, keyOf, make, update) {
  const old = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let at = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    let node = old.get(key);
    if (node) old.delete(key);
    else {
      node = make(item);
      node.dataset.key = key;
    }
    if (node === at) at = at.nextElementSibling;
    else parent.insertBefore(node, at);
    update(node, item);
  }
  for (const node of old.values()) node.remove();
}
