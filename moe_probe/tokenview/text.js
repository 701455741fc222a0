// The document as text: blocks of tokens that become spans only while they are on screen, painted for one router a pane.
//
// It knows nothing of legends, keys or where the state comes from: `paint(look)` is all it is told.

const BLOCK = 256; // tokens; a block ends at a line end where it can

function splitBlocks(packed) {
  const { n_tokens: n, starts, text } = packed;
  const blocks = [];
  let from = 0;
  const close = (to) => {
    blocks.push({ from, to, row: null, panes: [], visible: false, painted: -1 });
    from = to;
  };
  for (let i = 0; i < n; i++) {
    const size = i + 1 - from;
    const ends = starts[i + 1] > starts[i] && text[starts[i + 1] - 1] === '\n';
    // Without a line end in reach, break before a word rather than inside one.
    const nextIsWord = i + 1 < n && /\s/.test(text[starts[i + 1]] || '');
    if ((ends && size >= BLOCK / 4) || (size >= 2 * BLOCK && nextIsWord) || size >= 3 * BLOCK) close(i + 1);
  }
  if (from < n) close(n);
  return blocks;
}

// Every combination of fill and underline, once: assigning a ready string is what makes repainting fast.
function classNames(colours) {
  const names = [];
  for (let fill = -3; fill < colours; fill++) {
    for (let line = -1; line < colours; line++) {
      const base = fill >= 0 ? `c${fill}` : ['dropped', 'dim', 'plain'][fill + 3];
      names.push(line >= 0 ? `${base} u${line}` : base);
    }
  }
  return names;
}
const FILL_DROPPED = -3;
const FILL_DIM = -2;
const FILL_NONE = -1;

// One router's colouring rule as a function of the token's index -> class name.
function colouring(packed, router, look) {
  const colours = packed.palette.length;
  const names = classNames(colours);
  const name = (fill, line) => names[(fill + 3) * (colours + 1) + line + 1];
  const { ids, n_slots: slots, dropped } = router;
  const colourOf = look.colours.get(router.index);
  const focus = new Set(look.focus.filter((e) => e < router.n_experts));
  const last = look.slot === 'any' ? slots : 1;
  const underline = (o) => {
    for (let k = 1; k < last; k++) {
      const colour = colourOf.get(ids[o + k]);
      if (colour !== undefined && (!focus.size || focus.has(ids[o + k]))) return colour;
    }
    return -1;
  };
  return (i) => {
    if (look.keep && !look.keep(i)) return name(FILL_DIM, -1);
    const o = i * slots;
    const first = ids[o];
    if (first === dropped) return name(focus.size ? FILL_DIM : FILL_DROPPED, -1);
    if (!focus.size) {
      const colour = colourOf.get(first);
      return name(colour === undefined ? FILL_NONE : colour, underline(o));
    }
    if (focus.has(first)) return name(colourOf.get(first) ?? FILL_NONE, underline(o));
    const line = underline(o);
    return name(line >= 0 ? FILL_NONE : FILL_DIM, line);
  };
}

// Put the document into `scroller`; returns {paint, reveal, tokenAt, row, whole, close}.
function showText(packed, scroller) {
  const blocks = splitBlocks(packed);
  let look = null;
  let version = 0;
  let panes = 1;
  let everything = false; // all blocks as spans, for paper

  const blockText = (block) => {
    const text = packed.text.slice(packed.starts[block.from], packed.starts[block.to]);
    return text.endsWith('\n') ? text.slice(0, -1) : text; // the row itself ends the line
  };

  // The tokens of a stretch as one pane's cell, not painted yet: {cell, spans}.
  function makeCell(from, to) {
    const nodes = [];
    const spans = [];
    for (let i = from; i < to; i++) {
      let text = packed.token(i);
      const span = document.createElement('span');
      span._token = i;
      if (/^[\r\n]+$/.test(text)) span.dataset.end = text.length; // a line end has an expert too: it gets a sign
      if (i === to - 1 && text.endsWith('\n')) text = text.slice(0, -1);
      // The space before a word stays uncoloured: words then stand apart, and pieces of one word do not.
      if (/^ \S/.test(text)) {
        nodes.push(' ');
        text = text.slice(1);
      }
      span.textContent = text;
      spans.push(span);
      nodes.push(span);
    }
    return { cell: element('div', { class: 'moe-cell' }, ...nodes), spans };
  }

  function hydrate(block) {
    if (block.panes.length) return;
    const made = look.routers.map(() => makeCell(block.from, block.to));
    block.panes = made.map((pane) => pane.spans);
    block.row.replaceChildren(block.gutter, ...made.map((pane) => pane.cell));
    block.painted = -1;
  }

  function rest(block) {
    const cells = Array.from({ length: panes }, () => element('div', { class: 'moe-cell' }, blockText(block)));
    block.row.replaceChildren(block.gutter, ...cells);
    block.panes = [];
    block.painted = -1;
  }

  function paintBlock(block) {
    if (block.painted === version) return;
    block.painted = version;
    paintSpans(block.panes, block.from);
  }

  function paintSpans(paneSpans, from) {
    paneSpans.forEach((spans, pane) => {
      const router = look.routers[pane];
      const classOf = look.rules[pane];
      for (let j = 0; j < spans.length; j++) {
        const i = from + j;
        let name = classOf(i);
        if (look.hits && look.hits.has(i)) name += ' hit';
        if (i === look.token) name += ' chosen';
        const span = spans[j];
        if (span.className !== name) span.className = name;
        if (look.numbers) {
          const expert = router.ids[i * router.n_slots];
          const mark = expert === router.dropped ? '–' : String(expert);
          if (span.dataset.expert !== mark) span.dataset.expert = mark;
        } else if (span.dataset.expert !== undefined) delete span.dataset.expert;
      }
    });
  }

  const observer = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        const block = entry.target._block;
        block.visible = entry.isIntersecting;
        if (!look) continue;
        if (block.visible) {
          hydrate(block);
          paintBlock(block);
        } else if (block.panes.length && blocks.length > 24 && !everything) rest(block);
      }
    },
    { root: scroller, rootMargin: '300px' },
  );

  function makeGutter(from, opens) {
    const gutter = element('div', { class: 'moe-gutter', 'aria-hidden': 'true' });
    gutter.dataset.at = (opens ? '' : '⋯ ') + number(packed.first + from);
    return gutter;
  }

  // The tokens whose lines are wholly on screen: [first, one after the last].
  function onScreen() {
    const frame = scroller.getBoundingClientRect();
    const inside = (span) => {
      const box = span.getBoundingClientRect();
      return box.top >= frame.top - 1 && box.bottom <= frame.bottom + 1;
    };
    const seen = blocks.filter((block) => block.visible && block.panes.length).flatMap((block) => block.panes[0].filter(inside));
    return seen.length ? [seen[0]._token, seen.at(-1)._token + 1] : [0, 0];
  }

  function build() {
    scroller.style.setProperty('--panes', panes);
    scroller.replaceChildren(
      ...blocks.map((block) => {
        const opens = block.from === 0 || packed.text[packed.starts[block.from] - 1] === '\n';
        block.gutter = makeGutter(block.from, opens);
        block.row = element('div', { class: 'moe-row' });
        block.row._block = block;
        rest(block);
        return block.row;
      }),
    );
    for (const block of blocks) {
      block.visible = false;
      observer.observe(block.row);
    }
  }
  build();

  return {
    paint(next) {
      version += 1;
      const rebuild = next.routers.length !== panes;
      look = { ...next, rules: next.routers.map((router) => colouring(packed, router, next)) };
      if (rebuild) {
        panes = next.routers.length;
        observer.disconnect();
        build();
      }
      for (const block of blocks) {
        if (!block.visible && !everything) continue;
        hydrate(block);
        paintBlock(block);
      }
    },
    reveal(token) {
      const block = blocks.find((b) => token >= b.from && token < b.to);
      if (!block) return;
      block.row.scrollIntoView({ block: 'nearest' });
      hydrate(block);
      paintBlock(block);
      const span = block.panes[0][token - block.from];
      const box = span.getBoundingClientRect();
      const frame = scroller.getBoundingClientRect();
      if (box.top < frame.top + 24 || box.bottom > frame.bottom - 24) {
        scroller.scrollTop += box.top - frame.top - frame.height / 3;
      }
    },
    // What is on screen once more, as one row of its own.
    row() {
      const [from, to] = onScreen();
      const made = look.routers.map(() => makeCell(from, to));
      paintSpans(made.map((pane) => pane.spans), from);
      const opens = from === 0 || packed.text[packed.starts[from] - 1] === '\n';
      return element('div', { class: 'moe-row' }, makeGutter(from, opens), ...made.map((pane) => pane.cell));
    },
    // Paint all of the document, on screen or not, or go back to what is on screen.
    whole(wanted) {
      everything = wanted;
      for (const block of blocks) {
        if (wanted) {
          hydrate(block);
          paintBlock(block);
        } else if (!block.visible && blocks.length > 24) rest(block);
      }
    },
    tokenAt: (node) => (node && node._token !== undefined ? node._token : null),
    close: () => observer.disconnect(),
  };
}
