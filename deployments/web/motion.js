// Cards move from where they were to where they are: positions are read before and after a change, and each card is
// animated from the old to the new one.

const DURATION_MS = 600;
const calm = window.matchMedia('(prefers-reduced-motion: reduce)');

const places = (list) => new Map([...list.children].map((card) => [card.dataset.id, card.getBoundingClientRect()]));

/** Changes `list` by `change`, and lets its cards move. */
export function moving(list, change) {
  const before = places(list);
  change();
  if (calm.matches) return;
  for (const card of list.children) {
    const now = card.getBoundingClientRect();
    const was = before.get(card.dataset.id);
    const options = { duration: DURATION_MS, easing: 'cubic-bezier(.2, .8, .2, 1)' };
    if (!was) {
      const frames = [{ opacity: 0, transform: 'translateY(24px) scale(.96)' }, { opacity: 1, transform: 'none' }];
      card.animate(frames, before.size ? { ...options, delay: 80, fill: 'backwards' } : options);
    } else if (was.left !== now.left || was.top !== now.top) {
      card.animate([{ transform: `translate(${was.left - now.left}px, ${was.top - now.top}px)` }, { transform: 'none' }], options);
    }
  }
}
