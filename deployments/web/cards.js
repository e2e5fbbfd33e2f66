// Cards of items: what they show, the domain's actions as buttons, and why an item is here.

import { cover } from '/web/art.js';
import { bdi, el, number, percent } from '/web/dom.js';
import { moving } from '/web/motion.js';

const MAX_CHIPS = 3;
const MAX_FACTS = 2;
const MAX_BUTTONS = 4;
const SOURCES = {
  nearest: 'it is like what you did last',
  interests: 'it is like something you liked before',
  trending: 'many people like it right now',
  newest: 'it is new',
  popular: 'it is popular',
  explore: 'it was drawn at random, to learn about it',
  seen_again: 'you saw it, and nothing newer is left',
};

/** What is known of items, by id: what feeds and searches brought. */
export class Catalogue {
  constructor(domain) {
    this.domain = domain;
    this.fields = new Map();
    const named = (kind) => domain.attributes.filter((attribute) => attribute.kind === kind).map((attribute) => attribute.name);
    this.categories = named('categories');
    this.numbers = named('number');
    this.asked = [domain.title, ...this.categories, ...this.numbers].slice(0, 60);
  }

  learn(itemId, fields) {
    if (fields) this.fields.set(itemId, fields);
  }

  title(itemId) {
    return String(this.fields.get(itemId)?.[this.domain.title] ?? '').trim() || `untitled (${itemId})`;
  }

  /** Values of the first categorical attribute, which feeds are told apart by. */
  kinds(itemId) {
    return this.fields.get(itemId)?.[this.categories[0]] ?? [];
  }

  chips(itemId) {
    const fields = this.fields.get(itemId) ?? {};
    return [...new Set(this.categories.flatMap((name) => fields[name] ?? []))];
  }

  facts(itemId) {
    const fields = this.fields.get(itemId) ?? {};
    return this.numbers.filter((name) => typeof fields[name] === 'number').map((name) => `${name} ${number(fields[name])}`);
  }
}

/** The domain's actions on one item, as buttons. */
export function actionButtons(catalogue, itemId, onAct) {
  const actions = catalogue.domain.actions.filter((action) => action.in_sequence);
  const button = (action) => el(
    'button',
    { type: 'button', class: `action ${action.kind}`, 'data-action': action.name, on: { click: () => onAct(itemId, action.name) } },
    action.name.replaceAll('_', ' '),
    el('span', { class: 'hidden' }, ' ', bdi(catalogue.title(itemId))),
  );
  const [first, rest] = [actions.slice(0, MAX_BUTTONS), actions.slice(MAX_BUTTONS)];
  const more = rest.length ? el('details', { class: 'more' }, el('summary', { text: `${rest.length} more` }), ...rest.map(button)) : null;
  return el('div', { class: 'actions' }, ...first.map(button), more);
}

/** One item of a feed. `change`: what became of its place, or null. `tools`: `{onAct, onWhy}`, or null for a card that is only shown. */
function card(catalogue, item, change, tools) {
  const id = item.item_id;
  const chips = catalogue.chips(id);
  const facts = catalogue.facts(id).slice(0, MAX_FACTS);
  const more = chips.length > MAX_CHIPS ? [`+${chips.length - MAX_CHIPS}`] : [];
  const moved = change && el('span', { class: `moved ${change.kind}`, text: change.text });
  return el(
    'li',
    { class: 'card', 'data-id': id },
    el('div', { class: 'cover' }, cover(id, chips), el('span', { class: 'rank', text: String(item.rank) }), moved),
    el(
      'div',
      { class: 'body' },
      el('h3', { dir: 'auto', text: catalogue.title(id) }),
      facts.length ? el('p', { class: 'facts', text: facts.join(' · ') }) : null,
      chips.length ? el('ul', { class: 'chips' }, ...[...chips.slice(0, MAX_CHIPS), ...more].map((text) => el('li', { dir: 'auto', text }))) : null,
    ),
    tools ? actionButtons(catalogue, id, tools.onAct) : null,
    tools ? why(catalogue, item, tools.onWhy) : null,
  );
}

/** Shows the items of an answer in `list`; cards move from where they were. Returns how many are new and how many moved. */
export function showItems(list, catalogue, items, tools) {
  const before = new Map([...list.children].map((element, n) => [element.dataset.id, n + 1]));
  const focused = focusIn(list);
  let [fresh, moved] = [0, 0];
  const cards = items.map((item) => {
    const was = before.get(item.item_id);
    let change = null;
    if (before.size && was === undefined) {
      fresh += 1;
      change = { kind: 'new', text: 'new' };
    } else if (was !== undefined && was !== item.rank) {
      moved += 1;
      const up = was > item.rank;
      change = { kind: up ? 'up' : 'down', text: `${up ? '▲' : '▼'} ${Math.abs(was - item.rank)}` };
    }
    return card(catalogue, item, change, tools);
  });
  moving(list, () => list.replaceChildren(...cards));
  if (focused) refocus(list, focused);
  return { fresh, moved };
}

/** Where the keyboard is, so that it can go on there: the card, its place, the button. */
function focusIn(list) {
  const active = document.activeElement;
  const at = active?.closest?.('.card');
  if (!at || at.parentElement !== list) return null;
  return { id: at.dataset.id, place: [...list.children].indexOf(at), action: active.dataset.action };
}

function refocus(list, { id, place, action }) {
  const cards = [...list.children];
  const at = cards.find((element) => element.dataset.id === id) ?? cards[Math.min(place, cards.length - 1)];
  const button = action && at?.querySelector(`[data-action="${CSS.escape(action)}"]`);
  (button || at?.querySelector('button, summary') || document.getElementById('feed-title')).focus({ preventScroll: true });
}

function why(catalogue, item, onWhy) {
  const content = el('div', { class: 'reasons' });
  const fill = async () => {
    content.replaceChildren(...sources(catalogue, item));
    const reasons = await onWhy(item.item_id);
    if (reasons) content.replaceChildren(...told(catalogue, reasons), ...sources(catalogue, item));
  };
  const details = el('details', { class: 'why' }, el('summary', {}, 'Why?', el('span', { class: 'hidden' }, ' ', bdi(catalogue.title(item.item_id)))), content);
  details.addEventListener('toggle', () => { if (details.open) fill(); });
  return details;
}

/** What every answer tells: which source brought the item, and what the model expects. */
function sources(catalogue, item) {
  const lines = (item.sources ?? []).map((name) => el('p', { text: `Found because ${SOURCES[name] ?? `of “${name}”`}.` }));
  const heads = Object.entries(item.probabilities ?? {});
  const rows = heads.map(([name, value]) => {
    const bar = el('span', { class: 'fill' });
    bar.style.inlineSize = percent(value);
    return el('li', {}, el('span', { text: name.replaceAll('_', ' ') }), el('span', { class: 'track', 'aria-hidden': 'true' }, bar), el('span', { class: 'figure', text: percent(value) }));
  });
  const list = rows.length ? el('ul', { class: 'heads', 'aria-label': 'What the model expects' }, ...rows) : null;
  const score = typeof item.score === 'number' ? el('p', { class: 'muted', text: `Score ${number(item.score)}` }) : el('p', { class: 'muted', text: 'No ranker scored it in time.' });
  return [...lines, list, score].filter((part) => part !== null);
}

/** Which past actions brought the item here: its score and place without them. `kept`: what stays in either way. */
function told(catalogue, { item: { score, rank, reasons }, kept }) {
  const rows = reasons.map((reason) => el('li', {}, 'Without ', ...leftOut(catalogue, reason), `: score ${number(score)} → ${number(reason.score_without)}, ${places(reason.rank_without - rank)}.`));
  const none = el('p', { text: 'None of your last actions made a difference.' });
  const rest = kept.length ? el('p', { class: 'muted', text: `Counted either way: ${kept.join(', ')}.` }) : null;
  return [rows.length ? el('ul', { class: 'causes' }, ...rows) : none, rest].filter((part) => part !== null);
}

function leftOut(catalogue, { kind, action, count, category, item_id: itemId }) {
  const what = action ? `“${action.replaceAll('_', ' ')}”` : '';
  return kind === 'category' ? [`your ${count} × ${what || 'actions'} on `, bdi(category)] : [`your ${what} on `, bdi(catalogue.title(itemId))];
}

function places(lower) {
  if (lower === 0) return 'same place';
  return `${Math.abs(lower)} place${Math.abs(lower) === 1 ? '' : 's'} ${lower > 0 ? 'lower' : 'higher'}`;
}
