// Mounts two panes on documents that the loader has brought, and carries their state to and from the server. `STYLE` and
// the panes themselves are put before this by panes.py.

const PANES_TELL_MS = 250;
const mountedPanes = new WeakMap();

function connectPanes({ data, parentElement, setStateValue }) {
  const root = parentElement.querySelector('.moe-root');
  const store = window.__moeProbe;
  let mine = mountedPanes.get(root);
  if (!mine) {
    mine = { view: null, what: null, revision: null, timer: null, brought: new Map() };
    mountedPanes.set(root, mine);
  }
  const what = JSON.stringify([data.keys, data.titles]);
  mine.tell = (state) => setStateValue('shown', { keys: data.keys, ...state });
  const onState = (state) => {
    clearTimeout(mine.timer);
    mine.timer = setTimeout(() => mine.tell(state), PANES_TELL_MS);
  };

  const show = () => {
    // Documents are held here as they come: the page keeps few of them, and the second may push out the first.
    for (const key of data.keys) if (store.documents.has(key)) mine.brought.set(key, store.documents.get(key));
    const packed = data.keys.map((key) => mine.brought.get(key));
    if (!packed.every(Boolean)) return;
    store.waiting.delete(show);
    if (mine.what !== what) {
      clearTimeout(mine.timer);
      if (mine.view) mine.view.close();
      mine.what = what;
      if (root.previousElementSibling?.tagName !== 'STYLE') {
        root.before(Object.assign(document.createElement('style'), { textContent: STYLE }));
      }
      mine.view = mountPanes(root, packed, data.state, { titles: data.titles, onState, keys: 'page' });
    } else if (mine.revision !== data.revision) {
      clearTimeout(mine.timer);
      mine.view.update(data.state);
    }
    mine.revision = data.revision;
    mine.brought = new Map(data.keys.map((key, side) => [key, packed[side]]));
    root.dataset.ready = data.keys.join(' ');
  };
  store.waiting.delete(mine.show);
  mine.show = show;
  store.waiting.add(show);
  show();

  return () => {
    clearTimeout(mine.timer);
    store.waiting.delete(mine.show);
    if (mine.view) mine.view.close();
    mountedPanes.delete(root);
  };
}

export default function () {
  const store = (window.__moeProbe ||= { documents: new Map(), waiting: new Set() });
  store.connectPanes = connectPanes;
  for (const wake of [...store.waiting]) wake();
}
