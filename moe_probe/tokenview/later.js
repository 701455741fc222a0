// Routers of a document that is too large to come at once: which are here, how others are brought, which are let go.
//
// A document is asked the same questions whether it is whole or not; `bringLater(packed, ask)` makes it one that is not.
// It knows nothing of where the bytes come from: `ask({router})` and `ask({token})` promise what pack_routing() wrote.

const KEPT_BYTES = 32e6; // of routers that are not shown
const NEEDS_KEPT = 2; // what is shown while the next layer is on its way must stay

// A document that is whole: nothing is ever missing.
const allHere = {
  partly: false,
  missing: () => [],
  need: () => Promise.resolve(),
  // Where a token's path is read: {routers, at}, or null while it is on its way.
  path(token) {
    return { routers: this.routers, at: token };
  },
  needPath: () => Promise.resolve(),
};

function bringLater(packed, ask) {
  const underWay = new Map(); // router index -> promise
  let needed = []; // the last few sets of routers that had to be here
  let path = { token: null, routers: null, promise: null };

  function bring(index) {
    const router = packed.routers[index];
    if (router.ids) return Promise.resolve();
    if (!underWay.has(index)) {
      const coming = ask({ router: index }).then((bytes) => {
        const [found] = decodeRouting(bytes);
        if (found.index !== index || found.ids.length !== packed.n_tokens * router.n_slots) {
          throw new Error(`${router.title} of another document came`);
        }
        fillWith(router, found);
      });
      underWay.set(index, coming.finally(() => underWay.delete(index)));
    }
    return underWay.get(index);
  }

  function fillWith(router, found) {
    const { ids, dropped, weighted, bytes, weight, entropy } = found;
    Object.assign(router, { ids, dropped, weighted, bytes, weight, entropy });
    letGo();
  }

  const size = () => packed.routers.reduce((sum, router) => sum + (router.ids ? router.bytes : 0), 0);
  const distance = (router) => Math.min(...needed[0].map((index) => Math.abs(index - router.index)));

  // Let go of the routers that are farthest from those in use, until the others are few enough.
  function letGo() {
    const inUse = new Set(needed.flat());
    const others = packed.routers.filter((router) => router.ids && !inUse.has(router.index));
    others.sort((a, b) => distance(b) - distance(a));
    while (others.length && size() > KEPT_BYTES) {
      const router = others.shift();
      Object.assign(router, fillRouter({ n_slots: router.n_slots }, {}, () => null));
    }
  }

  // The nearest router that is not here, if there is room for it, or one farther away to let go of.
  function nextNeighbour() {
    const [next] = packed.routers.filter((router) => !router.ids).sort((a, b) => distance(a) - distance(b));
    const here = packed.routers.filter((router) => router.ids);
    if (!next || !here.length) return null;
    const room = size() + here[0].bytes <= KEPT_BYTES;
    return room || here.some((router) => distance(router) > distance(next)) ? next : null;
  }

  // Bring neighbours before they are asked for, one after the other, so that a layer that is asked for waits for one.
  async function bringNeighbours() {
    const wanted = needed;
    for (let next = nextNeighbour(); next && wanted === needed; next = nextNeighbour()) {
      try {
        await bring(next.index);
      } catch {
        return; // it is asked for again, and then somebody is told
      }
    }
  }

  return Object.assign(packed, {
    partly: true,
    missing: (routers) => routers.map((router) => router.index).filter((index) => !packed.routers[index].ids),
    async need(indexes) {
      needed = [indexes, ...needed].slice(0, NEEDS_KEPT);
      await Promise.all(indexes.map(bring));
      bringNeighbours();
    },
    path: (token) => (path.token === token && path.routers ? { routers: path.routers, at: 0 } : null),
    needPath(token) {
      if (path.token !== token) {
        const mine = (path = { token, routers: null, promise: null });
        mine.promise = ask({ token }).then((bytes) => {
          mine.routers = decodeRouting(bytes);
        });
        mine.promise.catch(() => path === mine && (path = { token: null, routers: null, promise: null }));
      }
      return path.promise;
    },
  });
}
