// The document's token-to-expert table as CSV, made in the page.
//
// The same protection as in the tables that moe_probe writes: a token is a JSON string, and so is every other text that a
// spreadsheet could take for a formula, or that would break a line. What begins with a quote is a JSON string, always.

const FORMULA = /^\s*[=+\-@\uff1d\uff0b\uff0d\uff20]/u;
const HIDDEN = /(?! )[\p{C}\p{Z}]/u;

const csvField = (value) => (/[",\n\r]/.test(value) ? `"${value.replace(/"/g, '""')}"` : value);
const csvJson = (value) =>
  csvField(JSON.stringify(value).replace(/[\u007f\u0085\u2028\u2029]/g, (sign) => `\\u${sign.charCodeAt(0).toString(16).padStart(4, '0')}`));
const csvText = (value) => (FORMULA.test(value) || value.startsWith('"') || HIDDEN.test(value) ? csvJson(value) : csvField(value));
// Five digits name a float16 exactly.
const csvNumber = (value) => (value === null || Number.isNaN(value) ? '' : String(Number(value.toPrecision(5))));

// Of a document without text: a token's id, or nothing.
const standIn = (packed, i) => (packed.stand_ins === 'ids' ? packed.token(i).trim() : '');

// A row a token: where it is, what it is, its labels, and for each of `routers` its experts, then their weights.
// A document that is not all here brings its routers one by one; those of `keep` stay, for they are shown.
async function tableCsv(packed, routers, keep) {
  const head = ['document', 'position', packed.stand_ins === 'ids' ? 'token_id' : 'token', ...packed.labels.map((label) => csvText(label.name))];
  for (const router of routers) {
    for (let k = 0; k < router.n_slots; k++) head.push(`expert_${router.index}_${k}`);
    for (let k = 0; k < router.n_slots; k++) head.push(`weight_${router.index}_${k}`);
  }
  const lines = Array.from({ length: packed.n_tokens }, (_, i) => {
    const labels = packed.labels.map((label) => csvText(label.values[label.codes[i]]));
    return [csvText(packed.name), packed.first + i, packed.stand_ins ? standIn(packed, i) : csvJson(packed.token(i)), ...labels].join(',');
  });
  for (const router of routers) {
    await packed.need([...new Set([...keep.map((one) => one.index), router.index])]);
    for (let i = 0; i < packed.n_tokens; i++) {
      const slots = slotsOf(router, i);
      const cells = [...slots.map((slot) => slot.expert ?? ''), ...slots.map((slot) => csvNumber(slot.weight))];
      lines[i] += `,${cells.join(',')}`;
    }
  }
  return [head.join(','), ...lines, ''].join('\n');
}
