// A place for two panes. What fills it comes by itself, once, so that this, which is sent with every change, is short.

export default (component) => {
  const store = (window.__moeProbe ||= { documents: new Map(), waiting: new Set() });
  let close = null;
  const open = () => {
    if (!store.connectPanes) return;
    store.waiting.delete(open);
    close = store.connectPanes(component);
  };
  store.waiting.add(open);
  open();
  return () => (close ? close() : store.waiting.delete(open));
};
