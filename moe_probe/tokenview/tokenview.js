// A document coloured by its experts: the state, the keys and the bar that tie text, histogram and card together.
//
//   const view = mountTokenView(root, decodeDocument(bytes), state, {onState, keys, files});
//   view.update(state); view.close();
//
// A pure function of (document, root, state, callbacks): Streamlit, a standalone page and a notebook mount the same one.
//
// `files`, where the view may hand out files: {run: a name for them, style: the view's style, page: state -> the address
// of a standalone page, if somebody makes one}. Without it there is no menu for them.

const START = {
  router: 0, // index into the document's routers
  focus: [], // experts, in the order they were picked; at most eight
  slot: 'first', // or 'any'
  token: null, // index within the document
  view: 'one', // or 'three': first, middle and last layer side by side
  numbers: false, // experts' numbers as superscripts
  label: null, // with `value`: only tokens so labelled keep their colour
  value: null,
  find: '',
};
const FOCUS_LIMIT = 8;
const MOST_CELLS = 8e6;
const PLAY_MS = 700;
const HAS_KEYS = 'a, button, input, select, textarea, [contenteditable], [role=slider], [role=combobox], [role=radio], [role=dialog]';

// Keep what fits this document and drop the rest: the state may come from a link.
function checkState(packed, wanted) {
  const state = { ...START, ...wanted };
  const whole = (value, below) => Number.isInteger(value) && value >= 0 && value < below;
  if (!whole(state.router, packed.routers.length)) state.router = 0;
  const experts = Math.max(...packed.routers.map((router) => router.n_experts));
  state.focus = [...new Set(state.focus)].filter((e) => whole(e, experts)).slice(0, FOCUS_LIMIT);
  if (!whole(state.token, packed.n_tokens)) state.token = null;
  if (state.slot !== 'any') state.slot = 'first';
  if (state.view !== 'three' || packed.routers.length < 2) state.view = 'one';
  const label = packed.labels.find((l) => l.name === state.label);
  if (!label || !label.values.includes(state.value)) state.label = state.value = null;
  state.find = String(state.find || '').slice(0, 200);
  return state;
}

// Tokens that a search touches: {tokens: Set, starts: [first token of each match]}. Case is ignored.
function findTokens(packed, query) {
  const tokens = new Set();
  const firsts = [];
  if (!query) return { tokens, firsts };
  // Lower-casing may change a text's length (İ), which would shift every offset after it: then compare as written.
  const lower = packed.text.toLowerCase();
  const same = lower.length === packed.text.length;
  const text = same ? lower : packed.text;
  const needle = same ? query.toLowerCase() : query;
  let i = 0;
  for (let at = text.indexOf(needle); at >= 0; at = text.indexOf(needle, at + needle.length)) {
    while (packed.starts[i + 1] <= at) i += 1;
    firsts.push(i);
    for (let j = i; j < packed.n_tokens && packed.starts[j] < at + needle.length; j++) tokens.add(j);
  }
  return { tokens, firsts };
}

function threeRouters(packed) {
  const last = packed.routers.length - 1;
  return [...new Set([0, Math.floor(last / 2), last])].map((i) => packed.routers[i]);
}

// Experts and weights in a table of all layers.
const cellsOf = (packed) => packed.n_tokens * packed.routers.reduce((sum, router) => sum + 2 * router.n_slots, 0);

// What the run does not hold, in a line; '' where it holds all.
function lacksText(packed, router) {
  const lacks = [];
  if (packed.stand_ins === 'ids') lacks.push("This document holds no text: the numbers are its tokens' ids.");
  if (packed.stand_ins === 'signs') lacks.push('This document holds neither text nor ids: each sign is a token.');
  if (!router.weighted) lacks.push('Weights were not recorded; only which experts were chosen is known.');
  return lacks.join(' ');
}

function buildFrame(packed, act, files) {
  const button = (label, text, onclick) =>
    element('button', { type: 'button', class: 'moe-button', 'aria-label': label, title: label, onclick }, text);
  const parts = {
    title: element('span', { class: 'moe-title' }),
    scrubber: element('input', {
      type: 'range',
      min: 0,
      max: packed.routers.length - 1,
      class: 'moe-scrubber',
      'aria-label': 'Layer',
      oninput: (event) => act.go(Number(event.target.value)),
    }),
    play: button('Play the layers (space)', '▶', act.play),
    three: button('First, middle and last layer side by side', 'Three layers', act.three),
    numbers: button("Show each token's expert number", 'Numbers', act.numbers),
    find: element('input', {
      type: 'search',
      class: 'moe-find',
      placeholder: 'Find  /',
      'aria-label': 'Find text',
      oninput: (event) => act.find(event.target.value),
    }),
    found: element('span', { class: 'moe-found', 'aria-live': 'polite' }),
    filter: element('button', { type: 'button', class: 'moe-chip', hidden: true, onclick: act.unfilter }),
    heads: element('div', { class: 'moe-heads' }),
    text: element('div', { class: 'moe-text', tabindex: 0, role: 'document', 'aria-label': `${packed.name}, tokens coloured by expert` }),
    card: element('div', { class: 'moe-card' }),
    side: element('aside', { class: 'moe-side', 'aria-label': 'Load of the layer' }),
    tip: element('div', { class: 'moe-tip', role: 'tooltip', hidden: true }),
    live: element('div', { class: 'moe-hidden', 'aria-live': 'polite' }),
    lacks: element('p', { class: 'moe-note moe-lacks' }),
    trouble: element('p', { class: 'moe-trouble', role: 'alert' }),
  };
  if (packed.monospace) parts.text.classList.add('moe-code');
  const save = files && menuButton('Export ▾', 'Save what is shown as a file', act.exports(), (text) => (parts.saved.textContent = text));
  parts.saved = element('span', { class: 'moe-saved', 'aria-live': 'polite' });
  parts.back = button('Previous layer (←)', '‹', () => act.step(-1));
  parts.next = button('Next layer (→)', '›', () => act.step(1));
  parts.bar = element(
    'div',
    { class: 'moe-bar' },
    element('div', { class: 'moe-group' }, parts.back, parts.title, parts.next),
    element('div', { class: 'moe-group moe-wide' }, parts.scrubber, parts.play),
    element('div', { class: 'moe-group' }, parts.three, parts.numbers, save, parts.saved),
    element('div', { class: 'moe-group' }, parts.filter, parts.find, parts.found),
  );
  parts.body = element('div', { class: 'moe-body' }, element('div', {}, parts.trouble, parts.lacks, parts.heads, parts.text), parts.side);
  return parts;
}

function mountTokenView(root, packed, wanted, { onState = () => {}, keys = 'view', files = null } = {}) {
  let state = checkState(packed, wanted);
  let hits = findTokens(packed, state.find);
  let timer = null;
  let drawn = []; // the routers that are on screen
  let toReveal = null;
  let closed = false;
  const firstCounts = new Map(); // router index -> counts of first choices in the whole document

  const act = {
    go: (router) => change({ router: Math.min(packed.routers.length - 1, Math.max(0, router)) }),
    step: (by) => act.go(state.router + by),
    pick(expert, add) {
      const has = state.focus.includes(expert);
      const alone = has && state.focus.length === 1;
      if (add) change({ focus: has ? state.focus.filter((e) => e !== expert) : [...state.focus, expert].slice(-FOCUS_LIMIT) });
      else change({ focus: alone ? [] : [expert] });
    },
    play() {
      if (timer) return stop();
      if (state.router === packed.routers.length - 1) act.go(0);
      timer = setInterval(() => (state.router === packed.routers.length - 1 ? stop() : act.step(1)), PLAY_MS);
      return mark();
    },
    three: () => change({ view: state.view === 'three' ? 'one' : 'three' }),
    numbers: () => change({ numbers: !state.numbers }),
    find(query) {
      hits = findTokens(packed, query);
      change({ find: query });
      if (hits.firsts.length) reveal(hits.firsts[0]);
    },
    unfilter: () => change({ label: null, value: null }),
    choose(token) {
      change({ token });
      if (token !== null) reveal(token);
    },
    nextHit(by) {
      const { firsts } = hits;
      if (!firsts.length) return;
      const from = state.token ?? -1;
      const place = by > 0 ? firsts.findIndex((t) => t > from) : firsts.findLastIndex((t) => t < (state.token ?? Infinity));
      act.choose(firsts[place >= 0 ? place : by > 0 ? 0 : firsts.length - 1]);
    },
    clear() {
      stop();
      hits = findTokens(packed, '');
      change({ find: '', focus: [], token: null, label: null, value: null });
    },
    exports: () => exportItems(),
  };

  const parts = buildFrame(packed, act, files);
  root.classList.add('moe');
  packed.palette.forEach((colour, place) => root.style.setProperty(`--e${place}`, colour));
  root.style.setProperty('--ink', packed.ink);
  root.replaceChildren(element('h2', { class: 'moe-hidden' }, packed.name), parts.bar, parts.body, parts.card, parts.tip, parts.live);
  const text = showText(packed, parts.text);

  function coloursOf(router) {
    if (!router.ids && !firstCounts.has(router.index)) return chooseColours(packed, router, state.focus, []);
    if (!firstCounts.has(router.index)) firstCounts.set(router.index, countExperts(packed, router, 'first').counts);
    return chooseColours(packed, router, state.focus, firstCounts.get(router.index));
  }

  function keeper() {
    if (state.label === null) return null;
    const label = packed.labels.find((l) => l.name === state.label);
    const code = label.values.indexOf(state.value);
    return (i) => label.codes[i] === code;
  }

  // What the menu of files offers. The names say run, document and layers.
  function exportItems() {
    const shown = () => drawn;
    const layers = () => shown().map((router) => router.title.toLowerCase().replace(/\s+/g, '-')).join('_');
    const name = (ending, part = layers()) => fileName(files.run, packed, part, ending);
    const table = async (routers) => new Blob([await tableCsv(packed, routers, shown())], { type: 'text/csv' });
    const items = [
      ['Picture of what is on screen (PNG)', async () => saveFile(name('png'), await picture())],
      ['Table of the layers shown (CSV)', async () => saveFile(name('csv'), await table(shown()))],
      // A larger table of all layers than a tab should hold is for the command line: moe-probe export --tokens.
      ...(cellsOf(packed) > MOST_CELLS
        ? []
        : [['Table of all layers (CSV)', async () => saveFile(name('csv', 'all-layers'), await table(packed.routers))]]),
    ];
    const page = () => element('a', { href: files.page({ ...state }), download: name('html') }).click();
    return files.page ? [['Web page that works on its own (HTML)', page], ...items] : items;
  }

  function picture() {
    const layers = state.view === 'three' ? '' : ` · ${packed.routers[state.router].title}`;
    return drawPicture(root, parts, packed.name + layers + (files.run ? ` · ${files.run}` : ''), text.row(), files.style);
  }

  function mark() {
    parts.play.textContent = timer ? '❚❚' : '▶';
    parts.play.setAttribute('aria-pressed', String(Boolean(timer)));
  }
  function stop() {
    clearInterval(timer);
    timer = null;
    mark();
    onState({ ...state }, { playing: false });
  }

  function drawBar() {
    const router = packed.routers[state.router];
    parts.title.textContent =
      state.view === 'three' ? `Layers ${threeRouters(packed).map((one) => one.short).join(', ')}` : router.title;
    parts.title.title = router.name;
    parts.scrubber.value = state.router;
    parts.scrubber.setAttribute('aria-valuetext', router.title);
    const three = state.view === 'three';
    parts.three.setAttribute('aria-pressed', String(three));
    parts.numbers.setAttribute('aria-pressed', String(state.numbers));
    for (const part of [parts.scrubber, parts.play, parts.back, parts.next]) part.disabled = three || packed.routers.length < 2;
    parts.three.disabled = packed.routers.length < 2;
    if (parts.find.value !== state.find) parts.find.value = state.find;
    const n = hits.firsts.length;
    parts.found.textContent = state.find ? (n ? `${number(n)} found` : 'none found') : '';
    parts.filter.hidden = state.label === null;
    parts.filter.textContent = state.label === null ? '' : `${state.label} = ${state.value}  ✕`;
    parts.filter.title = 'Show all tokens again';
  }

  function drawHeads(routers, keep) {
    parts.heads.hidden = state.view !== 'three';
    if (state.view !== 'three') return;
    parts.heads.style.setProperty('--panes', routers.length);
    parts.heads.replaceChildren(
      ...routers.map((router) => {
        const counted = countExperts(packed, router, state.slot, keep);
        const pane = element('div', { class: 'moe-head' }, element('h3', {}, router.title));
        pane.append(barChart(packed, router, counted, coloursOf(router), act.pick, 40));
        return pane;
      }),
    );
  }

  // Whether all that is to be shown is here; what is not is asked for, and drawn when it comes.
  function isHere(routers) {
    const missing = packed.missing(routers);
    const needed = packed.need(routers.map((router) => router.index));
    const token = state.token;
    if (token !== null && !packed.path(token)) packed.needPath(token).then(draw, sayTrouble);
    if (missing.length) needed.then(draw, sayTrouble);
    root.setAttribute('aria-busy', String(missing.length > 0));
    return !missing.length;
  }

  function sayTrouble(error) {
    if (!closed) parts.trouble.textContent = `This layer could not be brought: ${error.message}`;
  }

  function draw() {
    if (closed) return;
    const routers = state.view === 'three' ? threeRouters(packed) : [packed.routers[state.router]];
    if (!isHere(routers)) {
      drawBar();
      return;
    }
    const keep = keeper();
    parts.trouble.textContent = '';
    drawn = routers;
    const colours = new Map(routers.map((router) => [router.index, coloursOf(router)]));
    text.paint({ ...state, routers, colours, keep, hits: hits.tokens.size ? hits.tokens : null });
    drawBar();
    drawHeads(routers, keep);
    const router = packed.routers[state.router];
    const counted = countExperts(packed, router, state.slot, keep);
    const filter = keep ? ` of tokens with ${state.label} = ${state.value}` : '';
    root.classList.toggle('moe-three', state.view === 'three');
    if (state.view === 'one') showHistogram(packed, parts.side, router, counted, coloursOf(router), { ...state, filter }, act.pick);
    showCard(packed, parts.card, state.token, state.router, coloursOf, act.go);
    parts.lacks.textContent = lacksText(packed, router);
    root.dataset.router = state.router;
    if (toReveal !== null) reveal(toReveal);
  }

  // Bring a token into sight, as soon as there is something to see.
  function reveal(token) {
    toReveal = drawn.length ? null : token;
    if (drawn.length) text.reveal(token);
  }

  function change(changes, tell = true) {
    const before = state;
    state = checkState(packed, { ...state, ...changes });
    draw();
    if (before.router !== state.router) parts.live.textContent = packed.routers[state.router].title;
    if (tell) onState({ ...state }, { playing: Boolean(timer) });
  }

  function onKey(event) {
    const origin = event.composedPath()[0];
    if (!(origin instanceof Element) || event.ctrlKey || event.metaKey || event.altKey) return;
    // Elsewhere on the page the keys are ours only while nothing that has keys of its own holds the focus.
    if (!root.contains(origin) && (keys !== 'page' || origin.closest(HAS_KEYS))) return;
    if (origin === parts.find) {
      if (event.key === 'Enter') act.nextHit(event.shiftKey ? -1 : 1);
      else if (event.key === 'Escape') {
        act.clear();
        parts.text.focus({ preventScroll: true });
      } else return;
      event.preventDefault();
      return;
    }
    const space = event.key === ' ' && origin.tagName !== 'BUTTON';
    const moves = {
      ArrowLeft: () => (event.shiftKey ? act.choose(Math.max(0, (state.token ?? 1) - 1)) : act.step(-1)),
      ArrowRight: () => (event.shiftKey ? act.choose(Math.min(packed.n_tokens - 1, (state.token ?? -1) + 1)) : act.step(1)),
      Home: () => act.go(0),
      End: () => act.go(packed.routers.length - 1),
      Escape: act.clear,
      '/': () => parts.find.focus(),
    };
    const move = space ? act.play : moves[event.key];
    if (!move) return;
    event.preventDefault();
    move();
  }

  parts.text.onclick = (event) => {
    const token = text.tokenAt(event.composedPath()[0]);
    if (token !== null && !String(document.getSelection())) change({ token: token === state.token ? null : token });
  };
  parts.text.onpointermove = (event) => {
    const node = event.composedPath()[0];
    const token = text.tokenAt(node);
    parts.tip.hidden = token === null || !drawn.length;
    if (parts.tip.hidden) return;
    const panes = drawn;
    const cells = [...node.parentElement.parentElement.querySelectorAll('.moe-cell')];
    const router = panes[cells.indexOf(node.parentElement)] || panes[0];
    showTip(packed, parts.tip, router, coloursOf(router), token);
    const box = root.getBoundingClientRect();
    const left = Math.min(event.clientX - box.left + 14, box.width - parts.tip.offsetWidth - 8);
    const below = event.clientY - box.top + 20;
    const fits = event.clientY + 20 + parts.tip.offsetHeight < window.innerHeight;
    parts.tip.style.left = `${Math.max(0, left)}px`;
    parts.tip.style.top = `${fits ? below : below - parts.tip.offsetHeight - 34}px`;
  };
  parts.text.onpointerleave = () => (parts.tip.hidden = true);
  const listener = keys === 'page' ? document : root;
  listener.addEventListener('keydown', onKey);
  draw();
  if (state.token !== null) reveal(state.token);
  else if (hits.firsts.length) reveal(hits.firsts[0]);

  return {
    packed,
    update(next) {
      const token = state.token;
      hits = findTokens(packed, String(next.find || '').slice(0, 200));
      change(next, false);
      if (state.token !== null && state.token !== token) reveal(state.token);
    },
    state: () => ({ ...state }),
    whole: text.whole, // paint all of the text, on screen or not: for paper
    close() {
      closed = true;
      clearInterval(timer);
      listener.removeEventListener('keydown', onKey);
      text.close();
    },
  };
}
