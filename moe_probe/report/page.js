// Unpacks plotly.js, once, and draws every chart of the page. Asks the network for nothing.
//
// Each <div class="drawing"> holds its data and layout as JSON. Colours of text come from the page's style, so that a
// change of theme needs no redrawing; on paper a drawing is scaled to the width of the sheet, which needs its viewBox.

(async () => {
  'use strict';
  const plots = [...document.querySelectorAll('.drawing')];

  function say(plot, text) {
    const note = document.createElement('p');
    note.className = 'quiet';
    note.textContent = text;
    plot.replaceChildren(note);
    plot.style.height = 'auto';
  }

  async function unpack(packed) {
    const bytes = Uint8Array.from(atob(packed.textContent), (sign) => sign.charCodeAt(0));
    packed.remove();
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
    const script = document.createElement('script');
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    script.remove();
  }

  function letScale(plot) {
    const { width, height } = plot._fullLayout;
    plot.style.setProperty('--ratio', `${width} / ${height}`);
    for (const drawing of plot.querySelectorAll('.main-svg')) drawing.setAttribute('viewBox', `0 0 ${width} ${height}`);
  }

  async function draw(plot) {
    const { data, layout } = JSON.parse(plot.querySelector('script').textContent);
    plot.replaceChildren();
    await Plotly.newPlot(plot, data, layout, { displayModeBar: false, responsive: true, showTips: false });
    plot.on('plotly_afterplot', () => letScale(plot));
    letScale(plot);
  }

  try {
    await unpack(document.getElementById('plotly'));
  } catch (error) {
    plots.forEach((plot) => say(plot, `This browser cannot draw charts (${error.message}).`));
    return;
  }
  for (const plot of plots) {
    try {
      await draw(plot);
    } catch (error) {
      say(plot, `This chart cannot be drawn (${error.message}).`);
    }
  }
  document.documentElement.dataset.drawn = String(plots.length);
})();
