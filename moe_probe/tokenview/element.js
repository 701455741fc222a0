// Small DOM makers. Text only ever goes in as text, so a document's markup is shown as itself.

function element(tag, properties, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (name === 'class') node.className = value;
    else if (name.startsWith('on')) node[name] = value;
    else if (value === true) node.setAttribute(name, '');
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const SVG = 'http://www.w3.org/2000/svg';

function shape(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

const GROUPED = new Intl.NumberFormat('en-US'); // made once: making one takes as long as writing hundreds
const number = (value) => GROUPED.format(value);
const percent = (part, whole) => (whole ? `${((100 * part) / whole).toFixed(1)}%` : '–');

// A token as one sees it: spaces and line ends made visible, an empty piece named by the tokenizer's own spelling.
function visibleToken(packed, i) {
  const text = packed.token(i);
  if (packed.stand_ins) return text.trim();
  if (text === '') return packed.piece(i) || '(empty)';
  return text.replace(/ /g, '\u00b7').replace(/\t/g, '\u2192').replace(/\r/g, '\u240d').replace(/\n/g, '\u21b5');
}


// Put new children into `parent` and leave the keyboard where it was: on the child of the same `attribute` value.
function replaceKeepingFocus(parent, attribute, ...children) {
  const active = parent.getRootNode().activeElement;
  const name = active && parent.contains(active) ? active.getAttribute(attribute) : null;
  parent.replaceChildren(...children);
  if (name !== null) parent.querySelector(`[${attribute}="${name}"]`)?.focus({ preventScroll: true });
}
