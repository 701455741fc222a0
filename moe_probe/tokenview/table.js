// The document's token-to-expert table as CSV, made in the page.

// A token is written as JSON, so that line ends stay on their line and no spreadsheet takes one for a formula.
const csvField = (value) => (/[",\n\r]/.test(value) ? `"${value.replace(/"/g, '""')}"` : value);
const csvNumber = (value, digits) => (value === null || Number.isNaN(value) ? '' : String(Number(value.toPrecision(digits))));
// A label's value that a spreadsheet could take for a formula gets an apostrophe before it.
const csvText = (value) => csvField(/^[=+\-@\t\r]/.test(value) ? `'${value}` : value);

function tableCsv(packed) {
  const head = ['document', 'position', 'token', ...packed.labels.map((label) => label.name)];
  for (const router of packed.routers) {
    for (let k = 0; k < router.n_slots; k++) head.push(`expert_${router.index}_${k}`);
    for (let k = 0; k < router.n_slots; k++) head.push(`weight_${router.index}_${k}`);
  }
  const lines = [head.join(',')];
  for (let i = 0; i < packed.n_tokens; i++) {
    const row = [csvText(packed.name), packed.first + i, csvField(JSON.stringify(packed.token(i)))];
    for (const label of packed.labels) row.push(csvText(label.values[label.codes[i]]));
    for (const router of packed.routers) {
      const slots = slotsOf(router, i);
      row.push(...slots.map((slot) => slot.expert ?? ''), ...slots.map((slot) => csvNumber(slot.weight, 4)));
    }
    lines.push(row.join(','));
  }
  return lines.join('\n') + '\n';
}

function downloadCsv(packed) {
  const url = URL.createObjectURL(new Blob([tableCsv(packed)], { type: 'text/csv' }));
  const name = packed.name.replace(/[^\w.-]+/g, '_').slice(0, 80) || 'document';
  element('a', { href: url, download: `${name}.tokens.csv` }).click();
  URL.revokeObjectURL(url);
}
