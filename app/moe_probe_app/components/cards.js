// Cards of experts: buttons, of which one is pressed. Text only ever goes in as text; the pressed expert is sent back.

const make = (tag, name, text = '') => Object.assign(document.createElement(tag), { className: name, textContent: text });

function card(one, pressed) {
  const button = Object.assign(make('button', 'mpx-card'), { type: 'button' });
  button.dataset.expert = one.expert;
  button.setAttribute('aria-pressed', String(pressed));
  const head = make('span', 'mpx-head');
  const number = make('span', 'mpx-number', String(one.expert));
  number.style.setProperty('--hue', one.colour);
  head.append(number, make('span', 'mpx-share', one.share));
  button.append(head, make('span', 'mpx-name', one.name), make('span', 'mpx-far', one.far));
  if (one.tokens) button.append(make('span', 'mpx-tokens', one.tokens));
  button.setAttribute('aria-label', `Expert ${one.expert}: ${one.name}. ${one.far} ${one.share}`);
  return button;
}

export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector('.mpx-root');
  const held = parentElement.ownerDocument.activeElement;
  const focused = held?.shadowRoot?.activeElement ?? parentElement.getRootNode().activeElement;
  const kept = focused?.dataset?.expert;
  const top = root.scrollTop;
  const cards = data.cards.map((one) => card(one, one.expert === data.pressed));
  root.setAttribute('role', 'group');
  root.setAttribute('aria-label', data.label);
  root.replaceChildren(...cards);
  root.scrollTop = top;
  if (kept !== undefined) cards.find((one) => one.dataset.expert === kept)?.focus({ preventScroll: true });
  root.onclick = (event) => {
    const pressed = event.target.closest?.('[data-expert]');
    if (pressed) setTriggerValue('picked', Number(pressed.dataset.expert));
  };
  const steps = { ArrowRight: 1, ArrowLeft: -1 };
  root.onkeydown = (event) => {
    const at = cards.indexOf(event.target);
    const to = event.key === 'Home' ? 0 : event.key === 'End' ? cards.length - 1 : at + steps[event.key];
    if (at < 0 || !(to >= 0 && to < cards.length) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    cards[to].focus();
  };
  root.dataset.ready = `${data.cards.length}:${data.pressed}`;
}
