// Elements made with DOM calls alone: whatever an item or a user is called stays text.

export const byId = (id) => document.getElementById(id);

/** An element: `text`, `on` (handlers by event) and attributes, then its children; null children are left out. */
export function el(tag, { text, on, ...attributes } = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null && value !== false) element.setAttribute(name, value === true ? '' : value);
  }
  if (text !== undefined) element.textContent = text;
  for (const [event, handler] of Object.entries(on ?? {})) element.addEventListener(event, handler);
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Text of a user's or an item's, which may run from right to left. */
export const bdi = (text) => el('bdi', { text });

export const show = (element, visible) => { element.hidden = !visible; };

/** 0.3124 as "0.312"; whole numbers as they are. */
export const number = (value) => (Number.isInteger(value) ? String(value) : Number(value).toPrecision(3).replace(/\.?0+$/, ''));

export const percent = (share) => `${Math.round(share * 100)}%`;

const STEPS = [['second', 60], ['minute', 60], ['hour', 24], ['day', 30], ['month', 12], ['year', Infinity]];
const relative = new Intl.RelativeTimeFormat('en', { numeric: 'auto', style: 'short' });

/** How long ago a moment was, in words. */
export function ago(timestampMs) {
  let passed = Math.min(Math.round((timestampMs - Date.now()) / 1000), 0);
  for (const [unit, size] of STEPS) {
    if (-passed < size) return relative.format(Math.round(passed), unit);
    passed /= size;
  }
  return '';
}
