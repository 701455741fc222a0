// Opens the document that lies in a standalone page, and shows all of it on paper.

(async () => {
  'use strict';
  const read = (id) => document.getElementById(id).textContent;
  const root = document.getElementById('view');
  try {
    const { size, told, state, run, files } = JSON.parse(read('settings'));
    const bytes = await unsqueeze({ text: read('document'), size, told });
    const style = document.querySelector('style').textContent;
    const view = mountTokenView(root, decodeDocument(bytes), state, { keys: 'page', files: files ? { run, style } : null });
    window.addEventListener('beforeprint', () => view.whole(true));
    window.addEventListener('afterprint', () => view.whole(false));
    root.dataset.ready = 'true';
  } catch (error) {
    root.textContent = `This browser cannot show the document (${error.message}).`;
  }
})();
