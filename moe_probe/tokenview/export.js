// The menu of files: what is seen as a web page or a picture, what was recorded as a table.

// A file's name from what it holds: words and dots only, so that every system takes it.
function fileName(run, packed, part, ending) {
  const words = [run, packed.name, part].filter(Boolean).map((word) => word.replace(/[^\p{L}\p{N}._-]+/gu, '_').slice(0, 80));
  return `${words.join('.') || 'document'}.${ending}`;
}

function saveFile(name, blob) {
  const url = URL.createObjectURL(blob);
  element('a', { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

// A button with a menu under it. `items` are [text, what to do]; `say(text)` tells what became of it.
function menuButton(text, label, items, say) {
  const choices = items.map(([name, act]) =>
    element('button', { type: 'button', role: 'menuitem', class: 'moe-item', tabindex: -1, onclick: () => choose(act) }, name),
  );
  const menu = element('div', { class: 'moe-menu', role: 'menu', 'aria-label': label, hidden: true }, ...choices);
  const opener = element(
    'button',
    { type: 'button', class: 'moe-button', 'aria-haspopup': 'menu', 'aria-expanded': 'false', title: label, onclick: () => show(menu.hidden) },
    text,
  );
  function show(open, back = true) {
    menu.hidden = !open;
    opener.setAttribute('aria-expanded', String(open));
    if (open) choices[0].focus();
    else if (back) opener.focus();
  }
  async function choose(act) {
    show(false);
    say('');
    try {
      await act();
    } catch (error) {
      say(`This could not be made: ${error.message}`);
    }
  }
  const box = element('div', { class: 'moe-export' }, opener, menu);
  box.onfocusout = (event) => {
    if (!menu.hidden && !box.contains(event.relatedTarget)) show(false, false);
  };
  menu.onkeydown = (event) => {
    if (event.key === 'Tab') return;
    event.stopPropagation(); // the view's own keys rest while a menu is open
    const place = choices.indexOf(event.target);
    const moves = { ArrowDown: place + 1, ArrowUp: place - 1, Home: 0, End: -1 };
    if (event.key === 'Escape') show(false);
    else if (event.key in moves) choices.at(moves[event.key] % choices.length).focus();
    else return;
    event.preventDefault();
  };
  return box;
}
