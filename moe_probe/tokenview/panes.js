// One text twice, side by side: each pane painted for a router of its own, scrolled, pointed at and chosen in together.
//
//   const panes = mountPanes(root, [left, right], state, {titles, onState, keys});
//   panes.update(state); panes.close();
//
// `left` and `right` are documents over the same tokens, or the same one. In difference mode only the tokens keep their
// colour that the two routers treat otherwise: `slot` says whether the first choice counts, or the set of all slots.

const PANES_START = {
  router: 0, // of the left pane
  other: null, // of the right pane; null = that of the left one
  difference: false,
  focus: [],
  slot: 'first',
  token: null,
  numbers: false,
};
const SETTLE_FRAMES = 4; // rows get their real height only when they come into sight

function checkPanes(packed, wanted) {
  const state = { ...PANES_START, ...wanted };
  const whole = (value, below) => Number.isInteger(value) && value >= 0 && value < below;
  if (!whole(state.router, packed[0].routers.length)) state.router = 0;
  if (!whole(state.other, packed[1].routers.length)) state.other = null;
  if (!whole(state.token, packed[0].n_tokens)) state.token = null;
  const experts = Math.max(...packed.flatMap((one) => one.routers.map((router) => router.n_experts)));
  state.focus = [...new Set(state.focus)].filter((e) => whole(e, experts)).slice(0, FOCUS_LIMIT);
  state.slot = state.slot === 'any' ? 'any' : 'first';
  state.difference = state.difference === true;
  state.numbers = state.numbers === true;
  return state;
}

// What a router chose for each token, as values that are equal where the choice is: an expert, or a set of them.
function choicesOf(packed, router, slot) {
  const { ids, n_slots: slots, dropped } = router;
  const expert = (at) => (ids[at] === dropped ? -1 : ids[at]);
  if (slot !== 'any' || slots === 1) return Array.from({ length: packed.n_tokens }, (_, i) => String(expert(i * slots)));
  return Array.from({ length: packed.n_tokens }, (_, i) => {
    const set = [];
    for (let k = 0; k < slots; k++) if (ids[i * slots + k] !== dropped) set.push(ids[i * slots + k]);
    return set.sort((a, b) => a - b).join(' ') || '-1';
  });
}

// Which tokens changed, and what share would if both routers chose as often as they do, but independently of each other.
function differenceOf(packed, routers, slot) {
  const [left, right] = routers.map((router, side) => choicesOf(packed[side], router, slot));
  const n = left.length;
  const counts = [new Map(), new Map()];
  const changed = [];
  for (let i = 0; i < n; i++) {
    if (left[i] !== right[i]) changed.push(i);
    counts[0].set(left[i], (counts[0].get(left[i]) || 0) + 1);
    counts[1].set(right[i], (counts[1].get(right[i]) || 0) + 1);
  }
  let together = 0;
  for (const [choice, count] of counts[0]) together += (count / n) * ((counts[1].get(choice) || 0) / n);
  return { changed, is: new Set(changed), n, chance: n ? 1 - together : 0 };
}

function buildPanes(packed, titles, act) {
  const button = (label, text, onclick) =>
    element('button', { type: 'button', class: 'moe-button', 'aria-label': label, title: label, onclick }, text);
  const parts = {
    difference: button('Colour only the tokens that changed (d)', 'Only what changed', act.difference),
    back: button('Previous change (p)', '‹ Change', () => act.step(-1)),
    next: button('Next change (n)', 'Change ›', () => act.step(1)),
    numbers: button("Show each token's expert number", 'Numbers', act.numbers),
    said: element('p', { class: 'moe-changed', 'aria-live': 'polite', 'data-testid': 'changed' }),
    tip: element('div', { class: 'moe-tip', role: 'tooltip', hidden: true }),
    card: element('div', { class: 'moe-pair', 'aria-live': 'polite' }),
    trouble: element('p', { class: 'moe-trouble', role: 'alert' }),
  };
  parts.layers = packed.map((one, side) =>
    element(
      'select',
      { class: 'moe-layer', 'aria-label': `Layer of the ${side ? 'right' : 'left'} pane`, onchange: (event) => act.layer(side, Number(event.target.value)) },
      ...one.routers.map((router) => element('option', { value: router.index }, router.title)),
    ),
  );
  parts.texts = packed.map((one, side) =>
    element('div', { class: `moe-text${one.monospace ? ' moe-code' : ''}`, tabindex: 0, role: 'document', 'aria-label': `${titles[side]}, tokens coloured by expert` }),
  );
  parts.panes = element(
    'div',
    { class: 'moe-twins' },
    ...packed.map((_, side) =>
      element(
        'section',
        { class: 'moe-pane', 'aria-label': titles[side] },
        element('div', { class: 'moe-pane-head' }, element('h3', {}, titles[side]), parts.layers[side]),
        parts.texts[side],
      ),
    ),
  );
  parts.bar = element(
    'div',
    { class: 'moe-bar' },
    element('div', { class: 'moe-group' }, parts.difference, parts.back, parts.next),
    element('div', { class: 'moe-group moe-wide' }, parts.said),
    element('div', { class: 'moe-group' }, parts.numbers),
  );
  return parts;
}

// The token at the top of a scroller, and how far below its top: {block, token, below}.
function topToken(scroller) {
  const frame = scroller.getBoundingClientRect();
  const row = [...scroller.children].find((one) => one.getBoundingClientRect().bottom > frame.top + 1);
  if (!row) return null;
  const box = row.getBoundingClientRect();
  const place = { block: [...scroller.children].indexOf(row), part: (frame.top - box.top) / (box.height || 1) };
  const spans = row._block.panes[0] || [];
  const at = spans.findIndex((span) => span.getBoundingClientRect().bottom > frame.top + 1);
  return at < 0 ? { ...place, at: null } : { ...place, at, below: spans[at].getBoundingClientRect().top - frame.top };
}

// Scroll so that the same token is at the same height; false while its row is not made of tokens yet.
function showAt(scroller, place) {
  const row = scroller.children[place.block];
  if (!row) return true;
  const frame = scroller.getBoundingClientRect();
  const span = place.at === null ? null : row._block.panes[0]?.[place.at];
  const box = (span || row).getBoundingClientRect();
  scroller.scrollTop += span ? box.top - frame.top - place.below : box.top - frame.top + place.part * box.height;
  return Boolean(span) || place.at === null;
}

function mountPanes(root, packed, wanted, { titles, onState = () => {}, keys = 'view' }) {
  let state = checkPanes(packed, wanted);
  let difference = null;
  let leader = 0; // the pane that the reader moves; the other one follows
  let hovered = [];
  let frame = null;
  let closed = false;
  const other = () => state.other ?? Math.min(state.router, packed[1].routers.length - 1);
  const routers = () => [packed[0].routers[state.router], packed[1].routers[other()]];

  const act = {
    difference: () => change({ difference: !state.difference }),
    numbers: () => change({ numbers: !state.numbers }),
    layer(side, index) {
      if (side === 0) change({ router: index });
      else change({ other: packed[0] !== packed[1] && index === state.router ? null : index });
    },
    layerStep: (by) => act.layer(0, Math.min(packed[0].routers.length - 1, Math.max(0, state.router + by))),
    step(by) {
      const changed = difference ? difference.changed : [];
      if (!changed.length) return;
      const from = state.token;
      const next = by > 0 ? changed.find((t) => t > (from ?? -1)) : changed.findLast((t) => t < (from ?? Infinity));
      act.choose(next ?? (by > 0 ? changed[0] : changed.at(-1)));
    },
    choose(token) {
      change({ token });
      if (token !== null) reveal(token);
    },
  };

  const parts = buildPanes(packed, titles, act);
  root.classList.add('moe');
  packed[0].palette.forEach((colour, place) => root.style.setProperty(`--e${place}`, colour));
  root.style.setProperty('--ink', packed[0].ink);
  root.replaceChildren(parts.bar, parts.trouble, parts.panes, parts.card, parts.tip);
  const texts = parts.texts.map((scroller, side) => showText(packed[side], scroller));

  function coloursOf(side, router) {
    return chooseColours(packed[side], router, state.focus, countExperts(packed[side], router, 'first').counts);
  }

  function bring(shown) {
    const wanted = packed[0] === packed[1] ? [[packed[0], shown]] : packed.map((one, side) => [one, [shown[side]]]);
    const missing = wanted.filter(([one, its]) => one.missing(its).length);
    const needed = Promise.all(wanted.map(([one, its]) => one.need(its.map((router) => router.index))));
    root.setAttribute('aria-busy', String(missing.length > 0));
    if (missing.length) needed.then(draw, (error) => (parts.trouble.textContent = `A layer could not be brought: ${error.message}`));
    return !missing.length;
  }

  function draw() {
    if (closed) return;
    const shown = routers();
    shown.forEach((router, side) => (parts.layers[side].value = router.index));
    parts.difference.setAttribute('aria-pressed', String(state.difference));
    parts.numbers.setAttribute('aria-pressed', String(state.numbers));
    if (!bring(shown)) return;
    parts.trouble.textContent = '';
    difference = differenceOf(packed, shown, state.slot);
    const keep = state.difference ? (token) => difference.is.has(token) : null;
    texts.forEach((text, side) => {
      const colours = new Map([[shown[side].index, coloursOf(side, shown[side])]]);
      text.paint({ ...state, routers: [shown[side]], colours, keep, hits: null });
    });
    sayChanged();
    drawCard(shown);
    root.dataset.router = state.router;
    root.dataset.other = other();
    root.dataset.changed = difference.changed.length;
  }

  function sayChanged() {
    const { changed, n, chance } = difference;
    const what = state.slot === 'any' ? 'set of experts' : 'first choice';
    const place = difference.is.has(state.token) ? ` · change ${number(changed.indexOf(state.token) + 1)}` : '';
    parts.said.textContent =
      `${number(changed.length)} of ${number(n)} tokens (${percent(changed.length, n)}) changed their ${what}; ` +
      `by chance ${(100 * chance).toFixed(1)}%${place}`;
    parts.said.title = 'By chance: if both sides chose as often as they do here, but independently of each other.';
    parts.back.disabled = parts.next.disabled = !changed.length;
  }

  function choiceLines(token) {
    return routers().map((router, side) =>
      element('div', {}, element('b', {}, titles[side]), ` ${router.title}: ${slotsOf(router, token).map(slotText).join(', ')}`),
    );
  }

  const verdict = (token) => (difference.is.has(token) ? 'changed' : 'the same on both sides');

  function drawCard() {
    const token = state.token;
    if (token === null) {
      const key = (name) => element('kbd', {}, name);
      parts.card.replaceChildren(
        element('p', { class: 'moe-hint' }, key('n'), ' ', key('p'), ' next and previous change, ', key('d'), ' only what changed, ', key('←'), ' ', key('→'), ' change the layer on the left, click a token to compare it, ', key('esc'), ' clears'),
      );
      return;
    }
    parts.card.replaceChildren(
      element('div', { class: 'moe-token' }, visibleToken(packed[0], token)),
      element('div', { class: 'moe-facts' }, element('span', {}, `token ${number(packed[0].first + token)}`), element('span', {}, verdict(token))),
      ...choiceLines(token),
    );
  }

  function reveal(token) {
    leader = 0;
    texts[0].reveal(token);
    follow();
  }

  // Let the pane that is not moved show what the other one shows.
  function follow(left = SETTLE_FRAMES) {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(() => {
      if (closed) return;
      const place = topToken(parts.texts[leader]);
      if (!place) return;
      showAt(parts.texts[1 - leader], place);
      if (left > 0) follow(left - 1);
    });
  }

  function spanOf(side, token) {
    const row = [...parts.texts[side].children].find((one) => token >= one._block.from && token < one._block.to);
    return row?._block.panes[0]?.[token - row._block.from] || null;
  }

  function hover(token, event) {
    hovered.forEach((span) => span.classList.remove('over'));
    hovered = token === null ? [] : [0, 1].map((side) => spanOf(side, token)).filter(Boolean);
    hovered.forEach((span) => span.classList.add('over'));
    parts.tip.hidden = token === null || !difference;
    if (parts.tip.hidden) return;
    parts.tip.replaceChildren(
      element('div', { class: 'moe-tip-head' }, element('b', {}, visibleToken(packed[0], token)), ` token ${number(packed[0].first + token)} · ${verdict(token)}`),
      ...choiceLines(token),
      ...labelsOf(packed[0], token).map(([name, value]) => element('div', {}, `${name}: `, element('b', {}, value))),
    );
    const box = root.getBoundingClientRect();
    const left = Math.min(event.clientX - box.left + 14, box.width - parts.tip.offsetWidth - 8);
    const below = event.clientY - box.top + 20;
    const fits = event.clientY + 20 + parts.tip.offsetHeight < window.innerHeight;
    parts.tip.style.left = `${Math.max(0, left)}px`;
    parts.tip.style.top = `${fits ? below : below - parts.tip.offsetHeight - 34}px`;
  }

  function change(changes, tell = true) {
    state = checkPanes(packed, { ...state, ...changes });
    draw();
    if (tell) onState({ ...state });
  }

  function onKey(event) {
    const origin = event.composedPath()[0];
    if (!(origin instanceof Element) || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
    if (origin.closest('select, input, textarea, [contenteditable]')) return;
    if (!root.contains(origin) && (keys !== 'page' || origin.closest(HAS_KEYS))) return;
    const move = {
      n: () => act.step(1),
      p: () => act.step(-1),
      d: act.difference,
      ArrowLeft: () => act.layerStep(-1),
      ArrowRight: () => act.layerStep(1),
      Escape: () => change({ token: null, focus: [] }),
    }[event.key];
    if (!move) return;
    event.preventDefault();
    move();
  }

  parts.texts.forEach((scroller, side) => {
    const lead = () => (leader = side);
    for (const name of ['pointerenter', 'pointerdown', 'focus', 'wheel']) scroller.addEventListener(name, lead, { passive: true });
    scroller.onscroll = () => side === leader && follow();
    scroller.onpointermove = (event) => hover(texts[side].tokenAt(event.composedPath()[0]), event);
    scroller.onpointerleave = () => hover(null);
    scroller.onclick = (event) => {
      const token = texts[side].tokenAt(event.composedPath()[0]);
      if (token !== null && !String(document.getSelection())) change({ token: token === state.token ? null : token });
    };
  });
  const listener = keys === 'page' ? document : root;
  listener.addEventListener('keydown', onKey);
  draw();
  if (state.token !== null && difference) reveal(state.token);

  return {
    packed,
    update(next) {
      const token = state.token;
      change(next, false);
      if (difference && state.token !== null && state.token !== token) reveal(state.token);
    },
    state: () => ({ ...state }),
    close() {
      closed = true;
      cancelAnimationFrame(frame);
      listener.removeEventListener('keydown', onKey);
      texts.forEach((text) => text.close());
    },
  };
}
