// What stands beside the feed: who one is, what one did, items to find, and what the feed is made of.

import { hueOf } from '/web/art.js';
import { actionButtons } from '/web/cards.js';
import { ago, bdi, byId, el, percent, show } from '/web/dom.js';

const MAX_MIX = 5;
const MAX_PAST = 12;
const SIZES = [['fewer than 5 actions', 0, 5], ['fewer than 50', 5, 50], ['50 and more', 50, Infinity]];

/** Users of the log to become, by how much they did. */
export function showPeople(users, onUser) {
  const groups = SIZES.map(([name, from, to]) => [name, users.filter(({ length }) => length >= from && length < to)]);
  byId('people').replaceChildren(...groups.filter(([, group]) => group.length).map(([name, group]) => el(
    'div',
    { class: 'group' },
    el('h3', { text: name }),
    el('p', { class: 'row' }, ...group.map(({ user_id: id }) => el('button', { type: 'button', class: 'plain', on: { click: () => onUser(id) } }, bdi(id)))),
  )));
}

/** The user's last actions, the newest first. */
export function showPast(catalogue, { length, events }) {
  byId('user-length').textContent = length ? `${length} stored action${length === 1 ? '' : 's'}` : 'nothing stored yet';
  const kinds = new Map(catalogue.domain.actions.map((action) => [action.name, action.kind]));
  const rows = events.slice(0, MAX_PAST).map((event) => el(
    'li',
    {},
    el('span', { class: `tag ${kinds.get(event.action) ?? 'neutral'}`, text: (event.action ?? 'unknown').replaceAll('_', ' ') }),
    el('span', { class: 'what', dir: 'auto', text: catalogue.title(event.item_id) }),
    el('time', { class: 'muted', datetime: new Date(event.timestamp_ms).toISOString(), text: ago(event.timestamp_ms) }),
  ));
  byId('past').replaceChildren(...rows);
}

/** What a search found, each with its actions. */
export function showFound(catalogue, query, items, onAct) {
  byId('found-note').textContent = query ? `${items.length || 'Nothing'} found` : '';
  byId('found').replaceChildren(...items.map((item) => {
    const kinds = catalogue.chips(item.item_id).join(', ');
    return el(
      'li',
      {},
      el('span', { class: 'what', dir: 'auto', text: catalogue.title(item.item_id) }),
      kinds ? el('span', { class: 'muted', dir: 'auto', text: kinds }) : null,
      item.available ? null : el('span', { class: 'muted', text: 'not available' }),
      actionButtons(catalogue, item.item_id, onAct),
    );
  }));
}

/** Share of the feed that each category has. */
function shares(catalogue, items) {
  const counts = new Map();
  for (const { item_id: id } of items) for (const kind of catalogue.kinds(id)) counts.set(kind, (counts.get(kind) ?? 0) + 1);
  return new Map([...counts].map(([kind, count]) => [kind, count / items.length]));
}

/** What the feed is made of, and what it was made of before. */
export function showMix(catalogue, items, before) {
  const [now, was] = [shares(catalogue, items), shares(catalogue, before)];
  const top = [...now].sort(([a, x], [b, y]) => y - x || a.localeCompare(b)).slice(0, MAX_MIX);
  const rows = top.map(([kind, share]) => {
    const bar = el('span', { class: 'fill' });
    bar.style.backgroundColor = `hsl(${hueOf(kind)} 45% 50%)`;
    bar.style.inlineSize = percent(share);
    const points = Math.round(share * 100) - Math.round((was.get(kind) ?? 0) * 100);
    const change = before.length && points ? el('span', { class: points > 0 ? 'rise' : 'fall', text: `${points > 0 ? '+' : '−'}${Math.abs(points)}` }) : null;
    return el('li', { 'data-kind': kind }, el('span', { class: 'name', dir: 'auto', text: kind }), el('span', { class: 'track', 'aria-hidden': 'true' }, bar), el('span', { class: 'figure' }, percent(share), ' ', change));
  });
  byId('mix').replaceChildren(...rows);
  show(byId('mix'), rows.length > 0);
}

/** A select's choices after its first one. */
export function fillSelect(select, values, chosen) {
  const options = values.map(([value, text]) => el('option', { value, text, selected: value === chosen }));
  select.replaceChildren(select.options[0], ...options);
  select.value = values.some(([value]) => value === chosen) ? chosen : '';
}
