// A place for the token view. What fills it comes with the loader, so that this, which is sent with every change, is short.

export default (component) => {
  const store = (window.__moeProbe ||= { documents: new Map(), waiting: new Set() });
  let close = null;
  const open = () => {
    store.waiting.delete(open);
    close = store.connect(component);
  };
  if (store.connect) open();
  else store.waiting.add(open);
  return () => (close ? close() : store.waiting.delete(open));
};
