// Mounts the token view on a document that the loader has brought, and carries its state to and from the server. `STYLE`
// and `ROUTES` are put beside this by tokenview.py.

const TELL_MS = 250; // a scrub through ten layers is told once
const mounted = new WeakMap();

const styleElement = (text) => Object.assign(document.createElement('style'), { textContent: text });

// What the view's menu of files needs. A page of its own is made by the server, for the state that is shown.
function filesOf({ run, document: place, page }) {
  const address = ({ router, focus, numbers, ...state }) => {
    const known = { run, document: place, router, focus: focus.join(','), numbers: numbers ? '1' : null, ...state };
    const given = Object.entries(known).filter(([, value]) => value !== null && value !== '');
    return `${ROUTES.page}?${new URLSearchParams(given)}`;
  };
  return { run: run.split('/').at(-1), style: STYLE, page: page ? address : null };
}

function connectView(component) {
  const { data, parentElement, setStateValue } = component;
  const root = parentElement.querySelector('.moe-root');
  const store = window.__moeProbe;
  let mine = mounted.get(root);
  if (!mine) {
    mine = { view: null, key: null, place: null, revision: null, timer: null };
    mounted.set(root, mine);
  }
  mine.tell = (state) => setStateValue('shown', { key: mine.key, ...state });

  const onState = (state, { playing }) => {
    clearTimeout(mine.timer);
    if (!playing) mine.timer = setTimeout(() => mine.tell(state), TELL_MS);
  };

  const show = () => {
    const packed = store.documents.get(data.key);
    if (!packed) return;
    store.waiting.delete(show);
    const place = JSON.stringify(data.files);
    if (mine.key !== data.key || mine.place !== place) {
      clearTimeout(mine.timer);
      if (mine.view) mine.view.close();
      [mine.key, mine.place] = [data.key, place];
      if (root.previousElementSibling?.tagName !== 'STYLE') root.before(styleElement(STYLE));
      mine.view = mountTokenView(root, packed, data.state, { onState, keys: 'page', files: filesOf(data.files) });
    } else if (mine.revision !== data.revision) {
      clearTimeout(mine.timer);
      mine.view.update(data.state);
    }
    mine.revision = data.revision;
    root.dataset.ready = data.key;
  };
  store.waiting.delete(mine.show);
  mine.show = show;
  if (!store.documents.has(data.key)) store.waiting.add(show);
  show();

  return () => {
    clearTimeout(mine.timer);
    store.waiting.delete(mine.show);
    if (mine.view) mine.view.close();
    mounted.delete(root);
  };
}
