// One token: what it is, and the experts it was sent to on its way through all layers.

const MOST_SLOTS = 10; // of more, a token's heaviest are shown, and how many others there are
const INK_ROOM = 13; // a segment lower than this many pixels holds no number

function slotsOf(router, token) {
  const slots = [];
  for (let k = 0; k < router.n_slots; k++) {
    const expert = router.ids[token * router.n_slots + k];
    slots.push({ expert: expert === router.dropped ? null : expert, weight: router.weight(token, k) });
  }
  return slots;
}

const slotText = ({ expert, weight }) => {
  if (expert === null) return 'dropped';
  return weight === null ? `expert ${expert}` : `expert ${expert} × ${weight.toFixed(2)}`;
};

// The slots to show, the heaviest first, and how many more there are.
function heaviest(slots) {
  const shown = slots.length > MOST_SLOTS ? slots.slice(0, MOST_SLOTS - 2) : slots;
  return { shown, others: slots.slice(shown.length) };
}

// [["upos", "NOUN"], ...] of a token
const labelsOf = (packed, token) => packed.labels.map((label) => [label.name, label.values[label.codes[token]]]);

function showTip(packed, tip, router, colours, token) {
  const { shown, others } = heaviest(slotsOf(router, token));
  const slots = shown.map((slot) => {
    const colour = slot.expert === null ? undefined : colours.get(slot.expert);
    return element(
      'span',
      { class: 'moe-tip-slot' },
      element('span', { class: `moe-swatch ${colour === undefined ? 'moe-none' : `c${colour}`}` }, String(slot.expert ?? '–')),
      slot.expert === null ? ' dropped' : slot.weight === null ? '' : ` ${slot.weight.toFixed(2)}`,
    );
  });
  if (others.length) slots.push(element('span', {}, `and ${others.length} more`));
  const entropy = router.entropy(token);
  tip.replaceChildren(
    element('div', { class: 'moe-tip-head' }, element('b', {}, visibleToken(packed, token)), ` token ${number(packed.first + token)}`),
    element('div', { class: 'moe-tip-slots' }, `${router.title}: `, ...slots),
    ...(entropy === null ? [] : [element('div', {}, `router entropy ${entropy.toFixed(2)} bits`)]),
    ...labelsOf(packed, token).map(([name, value]) => element('div', {}, `${name}: `, element('b', {}, value))),
  );
}

function pathColumn(packed, router, colours, token, current, go) {
  const slots = slotsOf(router, token);
  const { shown, others } = heaviest(slots);
  const known = slots.filter((slot) => slot.expert !== null);
  const sum = known.reduce((total, slot) => total + Math.max(slot.weight ?? 1, 0), 0) || 1;
  const stack = element('span', { class: 'moe-stack' });
  const partOf = (slot) => (slot.expert === null ? 0.2 : Math.max(slot.weight ?? 1, 0) / sum);
  for (const slot of shown) {
    const part = partOf(slot);
    const colour = slot.expert === null ? undefined : colours.get(slot.expert);
    const kind = slot.expert === null ? 'dropped' : colour === undefined ? 'moe-none' : `c${colour}`;
    const label = slot.expert === null ? '–' : String(slot.expert);
    const segment = element('span', { class: `moe-segment ${kind}` }, part * 66 >= INK_ROOM ? label : '');
    segment.style.flexGrow = part;
    stack.append(segment);
  }
  if (others.length) {
    const rest = element('span', { class: 'moe-segment moe-rest' }, `+${others.length}`);
    rest.style.flexGrow = others.reduce((total, slot) => total + partOf(slot), 0);
    stack.append(rest);
  }
  const said = [...shown.map(slotText), ...(others.length ? [`and ${others.length} more`] : [])].join(', ');
  return element(
    'button',
    {
      class: 'moe-step',
      type: 'button',
      'aria-current': current ? 'true' : null,
      'aria-label': `${router.title}: ${said}`,
      title: `${router.title}: ${said}`,
      'data-router': router.index,
      onclick: () => go(router.index),
    },
    stack,
    element('span', { class: 'moe-step-name' }, router.short),
  );
}

// Redraw the card. `coloursOf(router)` says who wears which colour there; `go(router)` moves to a layer.
function showCard(packed, card, token, current, coloursOf, go) {
  if (token === null) {
    const key = (name) => element('kbd', {}, name);
    card.replaceChildren(
      element(
        'p',
        { class: 'moe-hint' },
        'Click a token to follow it through all layers.',
        element('br'),
        key('←'), ' ', key('→'), ' change the layer, ', key('space'), ' plays them, ', key('/'), ' finds, ',
        key('shift'), ' ', key('→'), ' steps from token to token, ', key('esc'), ' clears',
      ),
    );
    return;
  }
  const path = packed.path(token);
  const facts = [`token ${number(packed.first + token)}`];
  const piece = packed.piece(token);
  if (piece) facts.push(`vocabulary piece ${piece}`);
  const entropy = packed.routers[current].entropy(token);
  if (entropy !== null) facts.push(`entropy here ${entropy.toFixed(2)} bits`);
  replaceKeepingFocus(
    card,
    'data-router',
    element(
      'div',
      { class: 'moe-about' },
      element('div', { class: 'moe-token' }, visibleToken(packed, token)),
      element('div', { class: 'moe-facts' }, ...facts.map((fact) => element('span', {}, fact))),
      element(
        'div',
        { class: 'moe-facts' },
        ...labelsOf(packed, token).map(([name, value]) => element('span', {}, `${name} `, element('b', {}, value))),
      ),
    ),
    element(
      'div',
      { class: 'moe-path', role: 'group', 'aria-label': 'Path through all layers' },
      ...(path
        ? path.routers.map((router) =>
            pathColumn(packed, router, coloursOf(packed.routers[router.index]), path.at, router.index === current, go),
          )
        : ['Following it through the layers …']),
    ),
  );
}
