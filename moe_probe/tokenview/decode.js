// What pack() wrote, read back. Knows the format and nothing of how it is shown.

const MAGIC = 0x50454f4d; // "MOEP", little-endian
const ARRAYS = { u8: Uint8Array, u16: Uint16Array, u32: Uint32Array, f16: Uint16Array };
const DROPPED = { u8: 0xff, u16: 0xffff, u32: 0xffffffff };

// A float16 from its sixteen bits. (Float16Array is too young to lean on.)
function halfToNumber(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

// bytes -> the header, and a maker of the arrays that it names
function unpack(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.byteLength < 8 || view.getUint32(0, true) !== MAGIC) throw new Error('not a packed document of moe_probe');
  const headerLength = view.getUint32(4, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + headerLength)));
  if (header.version !== 1) throw new Error(`packed document of version ${header.version}; this view reads version 1`);
  // One copy: typed arrays want aligned offsets, and the bytes may sit anywhere in their buffer.
  const body = bytes.slice(8 + headerLength).buffer;
  return { header, array: (at) => (at ? new ARRAYS[at.type](body, at.offset, at.length) : null) };
}

// Give a router its arrays: `ids` (tokens, slots), null while they are not here, and how to ask for the others.
function fillRouter(router, said, array) {
  const weights = array(said.weights);
  const entropy = array(said.entropy);
  router.ids = array(said.experts);
  router.dropped = said.experts ? DROPPED[said.experts.type] : null;
  router.weighted = weights !== null;
  router.bytes = [router.ids, weights, entropy].reduce((sum, one) => sum + (one ? one.byteLength : 0), 0);
  router.weight = (token, slot) => (weights ? halfToNumber(weights[token * router.n_slots + slot]) : null);
  router.entropy = (token) => (entropy ? halfToNumber(entropy[token]) : null);
  return router;
}

// What pack_routing() wrote -> its routers, with their arrays
function decodeRouting(bytes) {
  const { header, array } = unpack(bytes);
  return header.routers.map((said) => fillRouter({ ...said }, said, array));
}

// bytes -> {name, n_tokens, starts, text, routers, labels, ...}: the header, its arrays, and how to ask them.
function decodeDocument(bytes) {
  const { header, array } = unpack(bytes);
  const lengths = array(header.lengths);
  const starts = new Uint32Array(header.n_tokens + 1); // UTF-16 offsets, as JavaScript counts
  for (let i = 0; i < header.n_tokens; i++) starts[i + 1] = starts[i] + lengths[i];

  const labels = header.labels.map((label) => ({ ...label, codes: array(label.codes) }));
  const pieces = array(header.piece_codes);
  return {
    ...header,
    starts,
    routers: header.routers.map((said) => fillRouter({ ...said }, said, array)),
    labels,
    token: (i) => header.text.slice(starts[i], starts[i + 1]),
    piece: (i) => header.pieces[pieces[i]],
    ...allHere,
  };
}

// How often each expert of a router was chosen: {counts, total, dropped, tokens}. `keep` may leave tokens out.
function countExperts(packed, router, slot, keep) {
  const counts = new Uint32Array(router.n_experts);
  const { ids, n_slots: slots } = router;
  const last = slot === 'any' ? slots : 1;
  let dropped = 0;
  let tokens = 0;
  for (let i = 0; i < packed.n_tokens; i++) {
    if (keep && !keep(i)) continue;
    tokens += 1;
    for (let k = 0; k < last; k++) {
      const expert = ids[i * slots + k];
      if (expert === router.dropped) dropped += 1;
      else counts[expert] += 1;
    }
  }
  return { counts, dropped, tokens, total: tokens * last - dropped };
}

// Which of the eight colours an expert wears: a Map. Up to eight experts always wear their own; of more, those that the
// reader picked, else the eight that this document uses most in this layer.
function chooseColours(packed, router, focus, counts) {
  const n = packed.palette.length;
  if (router.n_experts <= n) return new Map(Array.from({ length: router.n_experts }, (_, e) => [e, e]));
  let shown = focus.filter((e) => e < router.n_experts);
  if (!shown.length) {
    const used = [...counts.keys()].filter((e) => counts[e] > 0);
    shown = used.sort((a, b) => counts[b] - counts[a] || a - b);
  }
  return new Map(shown.slice(0, n).map((expert, place) => [expert, place]));
}
