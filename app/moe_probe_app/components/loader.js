// Keeps in the page what is large and does not change: the view's own code and style, and documents by their key, so that
// the server sends each of them once. `connectView` is put before this by tokenview.py.

const KEPT = 4;

export default function (component) {
  const { data } = component;
  if (!(data instanceof Uint8Array) || !data.length) return;
  const store = (window.__moeProbe ||= { documents: new Map(), waiting: new Set() });
  store.connect = connectView;
  const length = new DataView(data.buffer, data.byteOffset).getUint8(0);
  const key = new TextDecoder().decode(data.subarray(1, 1 + length));
  if (store.documents.has(key)) return;
  store.documents.set(key, decodeDocument(data.subarray(1 + length)));
  for (const old of [...store.documents.keys()].slice(0, -KEPT)) store.documents.delete(old);
  for (const wake of [...store.waiting]) wake();
}
