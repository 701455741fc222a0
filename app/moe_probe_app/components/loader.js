// Keeps in the page what is large and does not change: the view's own code and style, and documents by their key, so that
// the server sends each of them once. `connectView` and `ROUTES` are put before this by tokenview.py.

const KEPT = 4;
const KEPT_UNITS = 4e6; // UTF-16 units of text of all documents that are kept beside the newest

// The routing of a document that was sent without it: a router of all tokens, or all routers of a token.
const askFor = (key) => async (what) => {
  const [[name, value]] = Object.entries(what);
  const answer = await fetch(`${ROUTES[name]}?${new URLSearchParams({ key, [name]: value })}`);
  if (!answer.ok) throw new Error(await answer.text());
  return new Uint8Array(await answer.arrayBuffer());
};

// Let go of the oldest documents: of more than a few, and of any that are large together.
function letGo(documents) {
  const keys = [...documents.keys()].reverse();
  let units = 0;
  keys.forEach((key, age) => {
    units += age ? documents.get(key).text.length : 0;
    if (age >= KEPT || units > KEPT_UNITS) documents.delete(key);
  });
}

export default function (component) {
  const { data } = component;
  if (!(data instanceof Uint8Array) || !data.length) return;
  const store = (window.__moeProbe ||= { documents: new Map(), waiting: new Set() });
  store.connect = connectView;
  const [partly, length] = data;
  const key = new TextDecoder().decode(data.subarray(2, 2 + length));
  if (store.documents.has(key)) return;
  const packed = decodeDocument(data.subarray(2 + length));
  store.documents.set(key, partly ? bringLater(packed, askFor(key)) : packed);
  letGo(store.documents);
  for (const wake of [...store.waiting]) wake();
}
