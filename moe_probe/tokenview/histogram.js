// The load of one layer as a legend that is also a histogram: who wears which colour, how often it was chosen, chance.
//
// It is told what to show and calls `pick(expert, add)`; it keeps no state.

const ROWS = 16; // up to so many experts have a row each; of more, only those that wear a colour

const IN_ORDER = 128; // columns of more experts would be too thin to tell apart: they are sorted by load
const MOST_COLUMNS = 1024;

// The experts in the order of their columns.
function columnOrder(router, counts) {
  const experts = [...counts.keys()];
  if (router.n_experts <= IN_ORDER) return experts;
  return experts.sort((a, b) => counts[b] - counts[a] || a - b).slice(0, MOST_COLUMNS);
}

// What to say of the order, where it is not that of the numbers.
function orderText(router) {
  if (router.n_experts <= IN_ORDER) return '';
  const which = router.n_experts > MOST_COLUMNS ? `top ${number(MOST_COLUMNS)} by load` : 'by load';
  return ` Columns: ${which}, of ${number(router.n_experts)} experts.`;
}

function barChart(packed, router, counted, colours, pick, height) {
  // Thin columns for all experts at once: the shape of the load, however many there are.
  const order = columnOrder(router, counted.counts);
  const width = Math.max(order.length, 8) * 10;
  const chance = 1 / router.n_experts;
  const top = Math.max(...counted.counts, 1) / Math.max(counted.total, 1);
  const scale = height / Math.max(top, 2 * chance);
  const svg = shape('svg', { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: 'none', class: 'moe-columns' });
  const hover = shape('title', {});
  svg.append(hover);
  svg.setAttribute('role', 'img');
  svg.setAttribute('aria-label', `${router.title}: share of each of ${router.n_experts} experts`);
  const step = width / order.length;
  const room = order.length > IN_ORDER ? 0 : 0.08; // between columns
  order.forEach((expert, place) => {
    const tall = counted.total ? (counted.counts[expert] / counted.total) * scale : 0;
    const colour = colours.get(expert);
    const wide = { x: (place + room) * step, width: step * (1 - 2 * room) };
    const box = { ...wide, y: height - tall, height: Math.max(tall, 0.6) };
    svg.append(shape('rect', { ...box, class: colour === undefined ? 'moe-grey' : `moe-fill${colour}` }));
  });
  const y = height - chance * scale;
  svg.append(shape('line', { x1: 0, x2: width, y1: y, y2: y, class: 'moe-chance' }));
  const at = (event) => {
    const box = svg.getBoundingClientRect();
    const place = Math.floor(((event.clientX - box.left) / box.width) * order.length);
    return order[Math.min(order.length - 1, Math.max(0, place))];
  };
  svg.onclick = (event) => pick(at(event), event.shiftKey);
  svg.onpointermove = (event) => {
    const expert = at(event);
    hover.textContent = `Expert ${expert}: ${percent(counted.counts[expert], counted.total)}`;
  };
  return svg;
}

function legendRow(router, counted, colours, focus, pick, scale, expert) {
  const share = counted.total ? counted.counts[expert] / counted.total : 0;
  const colour = colours.get(expert);
  const pressed = focus.includes(expert);
  const fill = element('span', { class: `moe-bar-fill ${colour === undefined ? 'moe-none' : `c${colour}`}` });
  fill.style.width = `${Math.min(100, (100 * share) / scale)}%`;
  const text = percent(counted.counts[expert], counted.total);
  const row = element(
    'button',
    {
      class: `moe-expert${focus.length && !pressed ? ' off' : ''}`,
      type: 'button',
      'aria-pressed': String(pressed),
      'aria-label': `Expert ${expert}, ${text}, ${number(counted.counts[expert])} of ${number(counted.total)}`,
      'data-expert': expert,
      onclick: (event) => pick(expert, event.shiftKey),
    },
    element('span', { class: `moe-swatch ${colour === undefined ? 'moe-none' : `c${colour}`}` }, String(expert)),
    element('span', { class: 'moe-track' }, fill),
    element('span', { class: 'moe-share' }, text),
  );
  return row;
}

// Redraw `panel` for one router. `look` is the state; `note` says what was counted.
function showHistogram(packed, panel, router, counted, colours, look, pick) {
  const chance = 1 / router.n_experts;
  const few = router.n_experts <= ROWS;
  const experts = few ? [...counted.counts.keys()] : [...colours.keys()];
  const top = Math.max(...experts.map((e) => counted.counts[e] / Math.max(counted.total, 1)), 0);
  const scale = Math.max(1.08 * top, 2 * chance);
  const kind = look.slot === 'any' ? 'any slot' : 'first choice';
  const rows = element(
    'div',
    { class: 'moe-experts', role: 'group', 'aria-label': 'Experts: click to focus, shift-click to add' },
    ...experts.map((expert) => legendRow(router, counted, colours, look.focus, pick, scale, expert)),
  );
  rows.style.setProperty('--chance', `${Math.min(100, (100 * chance) / scale)}%`);
  const parts = [
    element('h3', {}, `Load of ${router.title.toLowerCase()}`),
    element('p', { class: 'moe-note' }, `Share of ${kind === 'any slot' ? 'all slots' : 'first choices'}${look.filter}`),
  ];
  if (!few) parts.push(barChart(packed, router, counted, colours, pick, 64));
  parts.push(rows);
  if (counted.dropped) {
    parts.push(
      element(
        'p',
        { class: 'moe-note' },
        element('span', { class: 'moe-swatch dropped' }, '–'),
        ` dropped: ${number(counted.dropped)} slots held no expert`,
      ),
    );
  }
  if (router.n_slots === router.n_experts && look.slot === 'any') {
    const text = 'Every token goes to every expert here, with a weight of its own: any slot tells nothing, first choices do.';
    parts.push(element('p', { class: 'moe-note' }, text));
  }
  const others = few ? '' : ` Coloured: ${look.focus.length ? 'your picks' : 'the eight most used here'}.`;
  parts.push(
    element(
      'p',
      { class: 'moe-note' },
      element('span', { class: 'moe-dash', 'aria-hidden': 'true' }),
      ` chance, 1/${router.n_experts} = ${(100 * chance).toFixed(chance < 0.01 ? 2 : 1)}%. n = ${number(counted.total)}.${others}${few ? '' : orderText(router)}`,
    ),
  );
  replaceKeepingFocus(panel, 'data-expert', ...parts);
}
