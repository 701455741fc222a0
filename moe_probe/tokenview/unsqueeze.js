// What squeeze.py made small, as pack() wrote it: the steps backwards, in place.

const SIGNS = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;,=>?@^_`{|}~';
const CELL_BYTES = { u8: 1, u16: 2, u32: 4, f16: 2 };

// Five signs for four bytes, of which the first `size` count.
function fromText(text, size) {
  const values = new Uint8Array(128);
  [...SIGNS].forEach((sign, value) => (values[sign.charCodeAt(0)] = value));
  const view = new DataView(new ArrayBuffer((text.length / 5) * 4));
  for (let i = 0, at = 0; i < text.length; i += 5, at += 4) {
    let word = 0;
    for (let j = 0; j < 5; j++) word = word * 85 + values[text.charCodeAt(i + j)];
    view.setUint32(at, word);
  }
  return new Uint8Array(view.buffer, 0, size);
}

// About one minus a sum of weights, as a float16's bits. Weights are counted in the least float16, so all is whole numbers.
function restOf(bits, from, to) {
  let left = 2 ** 24;
  for (let k = from; k < to; k++) {
    const exponent = bits[k] >> 10;
    left -= exponent ? ((bits[k] & 0x3ff) + 0x400) << (exponent - 1) : bits[k] & 0x3ff;
  }
  return toHalf(Math.max(left, 0));
}

// The float16's bits of a number of least float16.
function toHalf(count) {
  const shift = Math.max(21 - Math.clz32(count), 0);
  return (shift << 10) + ((count + ((1 << shift) >> 1)) >> shift);
}

const fromHundredths = (hundredths) => (hundredths === 0xffff ? 0x7e00 : toHalf(Math.round((hundredths / 100) * 2 ** 24)));

// First bytes, second bytes, ... of all rows -> row by row.
function joinBytes(cells, rows) {
  const width = cells.length / rows;
  const apart = cells.slice();
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < width; j++) cells[i * width + j] = apart[j * rows + i];
  }
}

// What squeeze() returned -> bytes for decodeDocument.
async function unsqueeze({ text, size, told }) {
  const stream = new Blob([fromText(text, size)]).stream().pipeThrough(new DecompressionStream('deflate'));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const length = new DataView(bytes.buffer).getUint32(4, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
  const rows = header.n_tokens;
  for (const router of rows ? header.routers : []) {
    for (const at of [router.experts, router.weights, router.entropy]) {
      const start = 8 + length + (at?.offset ?? 0);
      if (at) joinBytes(bytes.subarray(start, start + at.length * CELL_BYTES[at.type]), rows);
    }
    if (router.entropy) {
      const entropy = new Uint16Array(bytes.buffer, 8 + length + router.entropy.offset, router.entropy.length);
      entropy.forEach((hundredths, i) => (entropy[i] = fromHundredths(hundredths)));
    }
    if (!told.includes(router.index)) continue;
    const slots = router.n_slots;
    const weights = new Uint16Array(bytes.buffer, 8 + length + router.weights.offset, router.weights.length);
    for (let i = 0; i < weights.length; i += slots) weights[i] += restOf(weights, i + 1, i + slots);
  }
  return bytes;
}
