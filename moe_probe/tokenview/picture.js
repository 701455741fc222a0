// The text that is on screen as a PNG, with its title and its legend. The browser draws it: the same nodes and the same
// style inside an SVG, which asks for nothing, then that onto a canvas.

const PICTURE_SCALE = 2; // pixels of the picture for one of the page
const THEME = ['primary-color', 'background-color', 'secondary-background-color', 'text-color', 'border-color'];
// What XML cannot hold: control characters, and halves of a surrogate pair.
const NOT_XML = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

// A frame like the view's own without what only a screen needs.
function pictureFrame(root, parts, heading, row) {
  const frame = element(
    'div',
    { class: `${root.className} moe-picture` },
    element('div', { class: 'moe-picture-title' }, heading),
    element(
      'div',
      { class: 'moe-body' },
      element('div', {}, parts.heads.cloneNode(true), element('div', { class: parts.text.className }, row)),
      parts.side.cloneNode(true),
    ),
  );
  // Fonts of the page are files, which a picture may not ask for: those of the system measure and draw it.
  for (const [name, value] of [['--st-font', 'system-ui, sans-serif'], ['--st-code-font', 'ui-monospace, monospace']]) {
    frame.style.setProperty(name, value);
  }
  const theme = getComputedStyle(root);
  for (const name of THEME.map((one) => `--st-${one}`)) {
    if (theme.getPropertyValue(name)) frame.style.setProperty(name, theme.getPropertyValue(name));
  }
  for (const name of root.style) frame.style.setProperty(name, root.style.getPropertyValue(name));
  frame.querySelector('.moe-text').style.setProperty('--panes', parts.text.style.getPropertyValue('--panes'));
  frame.style.width = `${root.clientWidth}px`;
  return frame;
}

async function drawPicture(root, parts, heading, row, style) {
  const frame = pictureFrame(root, parts, heading, row);
  frame.style.position = 'absolute'; // beside the page, while it is measured
  root.append(frame);
  const [width, height] = [frame.offsetWidth, frame.offsetHeight];
  const paper = getComputedStyle(frame).backgroundColor;
  frame.remove();
  frame.style.position = 'static';
  const markup = new XMLSerializer().serializeToString(element('div', {}, element('style', {}, style), frame));
  const svg =
    `<svg xmlns="${SVG}" width="${width}" height="${height}"><foreignObject width="100%" height="100%">` +
    `${markup}</foreignObject></svg>`;
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svg.replace(NOT_XML, '\ufffd'))}`;
  await image.decode();
  const canvas = element('canvas', { width: width * PICTURE_SCALE, height: height * PICTURE_SCALE });
  const pen = canvas.getContext('2d');
  pen.fillStyle = paper;
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  const blob = await new Promise((done) => canvas.toBlob(done, 'image/png'));
  if (!blob) throw new Error('the browser made no picture');
  return blob;
}
