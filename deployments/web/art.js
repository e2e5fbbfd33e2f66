// Covers drawn from an item's id and categories: items of one category have one colour and one motif, and no two the
// same picture. No image is fetched.

const SVG = 'http://www.w3.org/2000/svg';
const WIDTH = 160;
const HEIGHT = 90;
const GOLDEN_ANGLE = 137.508;

/** FNV-1a, 32 bits. */
function hash(text) {
  let value = 0x811c9dc5;
  for (let n = 0; n < text.length; n += 1) value = Math.imul(value ^ text.charCodeAt(n), 0x01000193);
  return value >>> 0;
}

/** Numbers in [0, 1) from a seed (mulberry32). */
function random(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

let order = new Map();

/** The values of the first category, the most frequent first: neighbours in this order get hues far apart. */
export const orderCategories = (values) => { order = new Map(values.map((value, n) => [value, n])); };

export function hueOf(category) {
  if (category === undefined) return 220;
  const place = order.get(category) ?? hash(category) % 360;
  return Math.round((20 + place * GOLDEN_ANGLE) % 360);
}

function shape(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

const MOTIFS = [
  (next, fill, n) => shape('circle', { cx: next() * WIDTH, cy: next() * HEIGHT, r: 8 + 30 * next() / (n + 1), fill }),
  (next, fill) => shape('circle', { cx: next() * WIDTH, cy: HEIGHT, r: 14 + 44 * next(), fill: 'none', stroke: fill, 'stroke-width': 3 + 5 * next() }),
  (next, fill) => shape('rect', { x: next() * WIDTH - 10, y: -5, width: 4 + 18 * next(), height: 110, fill, transform: 'rotate(18 80 45)' }),
  (next, fill) => {
    const x = next() * WIDTH;
    const size = 14 + 34 * next();
    return shape('polygon', { points: `${x - size},${HEIGHT} ${x},${HEIGHT - 1.4 * size} ${x + size},${HEIGHT}`, fill });
  },
  (next, fill) => shape('rect', { x: -5, y: 12 + 66 * next(), width: 170, height: 3 + 12 * next(), rx: 3, fill, transform: `rotate(${-8 + 6 * next()} 80 45)` }),
  (next, fill) => {
    const size = 10 + 20 * next();
    const [x, y] = [next() * WIDTH, next() * HEIGHT];
    return shape('rect', { x, y, width: size, height: size, rx: 3, fill, transform: `rotate(45 ${x} ${y})` });
  },
];

/** The picture of one item. */
export function cover(itemId, categories) {
  const [first, second = first] = categories;
  const next = random(hash(itemId));
  const hue = hueOf(first);
  const picture = shape('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'xMidYMid slice', 'aria-hidden': 'true', focusable: 'false' });
  picture.append(shape('rect', { width: WIDTH, height: HEIGHT, fill: `hsl(${hue} 42% ${40 + Math.round(8 * next())}%)` }));
  const motif = MOTIFS[hash(first ?? '') % MOTIFS.length];
  for (let n = 0; n < 6; n += 1) {
    const tone = n % 3 === 2 ? hueOf(second) : hue;
    picture.append(motif(next, `hsl(${tone} ${45 + 15 * (n % 2)}% ${54 + 26 * next()}% / .75)`, n));
  }
  return picture;
}
