// A text whose tokens wear the change of their surprisal: warm and underlined where they are foretold worse, blue and
// dotted where better. Text only ever goes in as text. Nothing is sent back.

const FULL = 75; // per cent of the hue at the end of the scale: text stays readable on it in both themes
const MUCH = 0.25; // of the scale: from here a line says the sign without colour
const BLOCK = 256; // tokens after which a line end ends a block; blocks off screen cost nothing
const STEPS = [-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1];
const SIGNS = new Map([[-1, 'better'], [0, ''], [1, 'worse']]);

const make = (tag, name, text = '') => Object.assign(document.createElement(tag), { className: name, textContent: text });
const digits = (bound) => (bound < 0.1 ? 3 : bound < 1 ? 2 : 1);
// With a sign; to so many places, or as short as it can be.
const signed = (value, places) => {
  const text = places === undefined ? String(Number(Math.abs(value).toPrecision(3))) : Math.abs(value).toFixed(places);
  return Number(text) === 0 ? text : (value < 0 ? '−' : '+') + text;
};

function wear(node, share) {
  const level = Math.max(-1, Math.min(1, share));
  const sign = SIGNS.get(Math.sign(level));
  if (sign) node.classList.add(sign);
  if (Math.abs(level) >= MUCH) node.classList.add('much');
  node.style.setProperty('--mix', `${(FULL * Math.abs(level)).toFixed(1)}%`);
}

function legend(bound) {
  const ends = make('div', 'mpc-ends');
  const [better, worse] = [make('span', 'mpc-mark', 'foretold better'), make('span', 'mpc-mark', 'foretold worse')];
  wear(better, -1);
  wear(worse, 1);
  ends.append(better, worse);
  const ramp = make('div', 'mpc-ramp');
  for (const step of STEPS) {
    const cell = make('i', '');
    wear(cell, step);
    cell.classList.remove('much');
    ramp.append(cell);
  }
  const ticks = make('div', 'mpc-ticks');
  for (const step of [-1, -0.5, 0, 0.5, 1]) ticks.append(make('span', '', signed(step * bound)));
  ticks.firstChild.prepend('≤ ');
  ticks.lastChild.prepend('≥ ');
  ticks.lastChild.append(' bits');
  const whole = make('div', 'mpc-legend');
  whole.append(ends, ramp, ticks);
  return whole;
}

export default function ({ data, parentElement }) {
  const root = parentElement.querySelector('.mpc-root');
  const { tokens, labelName, bound } = data;
  const count = tokens.text.length;
  const places = digits(bound) + 1;
  let chosen = -1;

  const bar = make('div', 'mpc-bar');
  const toggle = Object.assign(make('button', 'mpc-button', 'Numbers'), { type: 'button', title: 'Show the bits beside each token' });
  toggle.setAttribute('aria-pressed', 'false');
  bar.append(legend(bound), toggle);
  const text = Object.assign(make('div', 'mpc-text'), { tabIndex: 0 });
  text.setAttribute('role', 'application');
  text.setAttribute('aria-roledescription', 'text');
  text.setAttribute('aria-label', 'Text, coloured by change of surprisal. Left and right arrow go from token to token.');
  const tip = Object.assign(make('div', 'mpc-tip'), { hidden: true });
  tip.setAttribute('role', 'status');
  const hint = make('p', 'mpc-hint', 'Point at a token for its numbers, or go from token to token with ← and →.');

  const spans = [];
  let block = make('div', 'mpc-block');
  for (let i = 0; i < count; i++) {
    let seen = tokens.text[i];
    const span = make('span', '');
    span.dataset.at = i;
    const change = tokens.change[i];
    if (change !== null) {
      wear(span, change / bound);
      span.dataset.bits = signed(change, digits(bound));
    }
    // The blank before a word stays uncoloured: words then stand apart, and pieces of one word do not.
    if (/^ \S/.test(seen)) {
      block.append(' ');
      seen = seen.slice(1);
    }
    const ends = /^[\r\n]+$/.test(seen);
    span.textContent = ends ? '↵' : seen;
    if (ends) span.classList.add('end');
    block.append(span);
    spans.push(span);
    if (ends) {
      if (block.childElementCount >= BLOCK) {
        text.append(block); // a block ends the line itself
        block = make('div', 'mpc-block');
        seen = seen.slice(1);
      }
      block.append(seen);
    }
  }
  text.append(block);

  function say(i) {
    const line = (words) => tip.append(make('p', '', words));
    tip.replaceChildren(make('b', '', tokens.text[i].replace(/ /g, '·').replace(/\n/g, '↵') || tokens.piece[i] || '(empty)'));
    line(`token ${tokens.position[i]} · ${labelName}: ${tokens.label[i]}`);
    const [before, change] = [tokens.surprisal[i], tokens.change[i]];
    if (change === null) line('no number: nothing foretells it, or it was not measured');
    else {
      const word = change > 0 ? 'worse' : 'better';
      line(`${signed(change, places)} bits${Number(change.toFixed(places)) === 0 ? ', no change' : `: foretold ${word}`}`);
      line(`surprisal ${before.toFixed(places)} → ${(before + change).toFixed(places)} bits`);
    }
    tip.hidden = false;
    const [box, at] = [root.getBoundingClientRect(), spans[i].getClientRects()[0] || spans[i].getBoundingClientRect()];
    const left = Math.max(0, Math.min(at.left - box.left, box.width - tip.offsetWidth));
    const below = at.bottom - box.top + 8;
    const fits = below + tip.offsetHeight <= box.height;
    tip.style.left = `${left}px`;
    tip.style.top = `${fits ? below : at.top - box.top - tip.offsetHeight - 8}px`;
  }

  function choose(i) {
    spans[chosen]?.classList.remove('chosen');
    chosen = i;
    if (chosen < 0) {
      tip.hidden = true;
      return;
    }
    spans[chosen].classList.add('chosen');
    spans[chosen].scrollIntoView({ block: 'nearest' });
    say(chosen);
  }

  const tokenOf = (event) => event.target.closest?.('[data-at]');
  text.onpointerover = (event) => {
    const token = tokenOf(event);
    if (token) say(Number(token.dataset.at));
    else if (chosen < 0) tip.hidden = true;
  };
  text.onpointerleave = () => (chosen < 0 ? (tip.hidden = true) : say(chosen));
  text.onclick = (event) => choose(tokenOf(event) ? Number(tokenOf(event).dataset.at) : -1);
  text.onscroll = () => (chosen < 0 ? (tip.hidden = true) : say(chosen));
  text.onkeydown = (event) => {
    const last = count - 1;
    const to = {
      ArrowRight: Math.min(last, chosen + 1), ArrowLeft: Math.max(0, chosen - 1), Home: 0, End: last, Escape: -1,
    }[event.key];
    if (to === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    choose(to);
  };
  toggle.onclick = () => {
    const on = text.classList.toggle('numbers');
    toggle.setAttribute('aria-pressed', String(on));
  };
  root.replaceChildren(bar, text, hint, tip);
  root.dataset.ready = String(count);
}
