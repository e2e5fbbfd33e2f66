// The page's state, and what happens when: a user is chosen, an action is done, the graph goes away or swaps its model.

import * as api from '/web/api.js';
import { orderCategories } from '/web/art.js';
import { Catalogue, showItems } from '/web/cards.js';
import { bdi, byId, el, show } from '/web/dom.js';
import { fillSelect, showFound, showMix, showPast, showPeople } from '/web/panels.js';

const FEED_SIZE = 12;
const NUM_PAST = 20;
const NUM_FOUND = 6;
const MAX_POOL = 200;
const MAX_ONLY = 60;
const HEALTH_EVERY_MS = 2000;
const SEARCH_AFTER_MS = 200;
const REASONS = {
  unknown_user: 'Nothing is stored of this user: this is what is popular and new.',
  filtered_out: 'Nothing is left to show.',
  store_timeout: 'Degraded: the store did not answer in time, so the user is treated as new.',
  store_unavailable: 'Degraded: the store failed, so the user is treated as new.',
  candidates_timeout: 'Degraded: no candidates came in time, so popular items are ranked.',
  candidates_unavailable: 'Degraded: the candidates stage failed, so popular items are ranked.',
  ranker_timeout: 'Degraded: no ranker answered in time, so the candidates keep their own order.',
  ranker_unavailable: 'Degraded: the rankers failed, so the candidates keep their own order.',
  statistics: 'Degraded: the statistics behind the ranking are out of date.',
  items_timeout: 'Degraded: titles did not come in time.',
  items_unavailable: 'Degraded: nobody could tell the titles.',
};

/** Reasons of answers that are not degraded. */
const WHOLE = ['unknown_user', 'filtered_out'];

const page = {
  catalogue: null, userId: '', only: '', compare: '', items: [], acted: new Set(), pool: [], requestId: null, model: null, live: null, up: true, turn: 0,
};

// ---- what is shown ---------------------------------------------------------------------------------------------------

function notice(text) {
  byId('notice').textContent = text;
  show(byId('notice'), Boolean(text));
}

function told(problem) {
  notice(problem instanceof api.Problem ? `${problem.message[0].toUpperCase()}${problem.message.slice(1)}.` : String(problem));
  if (!(problem instanceof api.Problem)) throw problem;
}

/** `since`: when the user clicked, or null; `what`: what the user did. */
function sayChange({ fresh, moved }, since, what, reason) {
  const words = [];
  if (since !== null) words.push(what, ' → feed changed in ', el('strong', { text: `${Math.round(performance.now() - since)} ms` }), ` · ${fresh} new, ${moved} moved. `);
  if (reason) words.push(REASONS[reason] ?? `Degraded: ${reason}.`);
  byId('change').replaceChildren(...words);
  byId('change').classList.toggle('degraded', Boolean(reason) && !WHOLE.includes(reason));
}

/** Fetches the feed and shows it. `since`: when the user clicked, or null; the newest call alone is shown. */
async function refresh(since = null, what = '') {
  page.turn += 1;
  const { turn, catalogue, userId } = page;
  const body = { user_id: userId, num_results: FEED_SIZE, explain: true, fields: catalogue.asked };
  if (page.only) body.filter = { [catalogue.categories[0]]: [page.only] };
  const answer = await api.feed(body);
  if (turn !== page.turn) return;
  notice('');
  for (const item of answer.items) catalogue.learn(item.item_id, item.fields);
  page.requestId = answer.request_id;
  const change = showItems(byId('feed'), catalogue, answer.items, { onAct: act, onWhy: reasonsOf });
  sayChange(change, since, what, answer.fallback_reason);
  showMix(catalogue, answer.items, page.items);
  page.items = answer.items;
  show(byId('empty'), !answer.items.length);
  byId('empty').textContent = page.only ? `Nothing of “${page.only}” is left to show.` : 'There is nothing to show: the catalogue is empty, or everything was seen.';
  modelIs(answer.model_version ?? page.model);
  byId('served-title').textContent = `The served feed, by ${answer.model_version ?? 'no model'}`;
  const seen = new Set(answer.items.map((item) => item.item_id));
  page.pool = [...seen, ...page.pool.filter((id) => !seen.has(id))].slice(0, MAX_POOL);
  await Promise.all([past(turn), other(turn)]);
}

/** The timeline. Its titles come with a ranking of its items, the one call that describes many. */
async function past(turn) {
  const { catalogue, userId } = page;
  const found = await api.sequence(userId, NUM_PAST);
  const unknown = [...new Set(found.events.map((event) => event.item_id))].filter((id) => !catalogue.fields.has(id));
  if (unknown.length) {
    const named = await api.rank({ user_id: userId, item_ids: unknown, fields: catalogue.asked });
    for (const item of named.items) catalogue.learn(item.item_id, item.fields);
  }
  for (const event of found.events) page.acted.add(event.item_id);
  if (turn === page.turn) showPast(catalogue, found);
}

/** The other column: the items that this page has seen, ordered by another model. */
async function other(turn) {
  const alias = page.compare;
  show(byId('other'), Boolean(alias));
  show(byId('served-title'), Boolean(alias));
  byId('columns').classList.toggle('two', Boolean(alias));
  if (!alias) return;
  const ids = page.pool.filter((id) => !page.acted.has(id));
  try {
    const answer = ids.length ? await api.rank({ user_id: page.userId, item_ids: ids, model: alias, explain: true }) : { items: [] };
    if (turn !== page.turn || alias !== page.compare) return;
    byId('other-title').textContent = `${ids.length} items that this page has seen, by ${alias}`;
    showItems(byId('other-feed'), page.catalogue, answer.items.slice(0, FEED_SIZE), null);
  } catch (problem) {
    if (!(problem instanceof api.Problem)) throw problem;
    byId('other-feed').replaceChildren();
    byId('other-title').textContent = `${alias}: ${problem.message}`;
  }
}

async function reasonsOf(itemId) {
  try {
    const answer = await api.explain(page.userId, [itemId]);
    const item = answer?.items.find((each) => each.item_id === itemId && each.score !== null);
    return item ? { item, kept: answer.kept } : null;
  } catch (problem) {
    told(problem);
    return null;
  }
}

// ---- what people do --------------------------------------------------------------------------------------------------

async function act(itemId, action) {
  const since = performance.now();
  const { userId, requestId } = page;
  const shown = page.items.some((item) => item.item_id === itemId);
  try {
    await api.act(userId, itemId, action, shown ? requestId : null);
    page.acted.add(itemId);
    if (userId === page.userId) await refresh(since, `${action.replaceAll('_', ' ')} on ${page.catalogue.title(itemId)}`);
  } catch (problem) {
    told(problem);
  }
}

async function become(userId) {
  page.userId = userId;
  page.acted = new Set();
  page.pool = [];
  page.items = [];
  byId('feed').replaceChildren();
  byId('other-feed').replaceChildren();
  byId('past').replaceChildren();
  byId('user').textContent = userId;
  keepInAddress();
  await refresh().catch(told);
}

const newUser = () => become(`visitor-${api.randomId().slice(0, 8)}`);

/** The user and the comparison stand behind the #, which no server is sent: a reload goes on where it was. */
function keepInAddress() {
  const words = new URLSearchParams({ user: page.userId });
  if (page.compare) words.set('compare', page.compare);
  history.replaceState(null, '', `#${words}`);
}

let searching = 0;

function search() {
  clearTimeout(searching);
  searching = setTimeout(async () => {
    const query = byId('query').value.trim();
    try {
      const { items } = query ? await api.search(query, NUM_FOUND) : { items: [] };
      if (query !== byId('query').value.trim()) return;
      for (const item of items) page.catalogue.learn(item.item_id, item);
      showFound(page.catalogue, query, items, act);
    } catch (problem) {
      told(problem);
    }
  }, SEARCH_AFTER_MS);
}

function askForKey(refused) {
  byId('key-problem').textContent = refused ? 'The graph does not know this key.' : '';
  byId('key').value = '';
  byId('key-dialog').showModal();
  return new Promise((resolve) => {
    byId('key-form').onsubmit = (event) => {
      event.preventDefault();
      byId('key-dialog').close(byId('key').value.trim());
    };
    byId('key-dialog').returnValue = '';
    byId('key-dialog').onclose = () => resolve(byId('key-dialog').returnValue);
  });
}

// ---- the graph -------------------------------------------------------------------------------------------------------

function modelIs(version) {
  page.model = version;
  byId('model').replaceChildren('served by ', el('b', {}, bdi(version ?? 'no model')));
}

async function readAliases() {
  const { aliases } = await api.models();
  const names = Object.entries(aliases).filter(([alias, version]) => alias !== 'champion' && version);
  fillSelect(byId('compare'), names.map(([alias]) => [alias, alias]), page.compare);
}

/** Follows the graph: it may go away and come back, and its model may be swapped while one watches. */
async function watch() {
  const { up, modelVersion, short } = await api.health();
  const back = up && !page.up;
  const before = page.live;
  const swapped = up && before !== null && modelVersion !== before;
  page.up = up;
  page.live = modelVersion ?? before;
  byId('dot').className = up ? (short ? 'dot warn' : 'dot ok') : 'dot down';
  if (!up) notice(`No feed can be answered now (${short}). The page goes on when the graph is back.`);
  try {
    if (back || swapped) {
      await Promise.all([refresh(), readAliases()]);
      if (swapped) byId('change').textContent = `The model was swapped: ${before} → ${modelVersion}.`;
    }
  } catch (problem) {
    told(problem);
  }
}

function follow() {
  setTimeout(async () => {
    if (!document.hidden) await watch();
    follow();
  }, HEALTH_EVERY_MS);
}

async function start() {
  api.onKeyNeeded(askForKey);
  const domain = await api.domain();
  page.catalogue = new Catalogue(domain);
  byId('domain').textContent = domain.name;
  document.title = `${domain.name} · rayapp`;
  const kinds = domain.categories[page.catalogue.categories[0]] ?? [];
  orderCategories(kinds.map(({ value }) => value));
  fillSelect(byId('only'), kinds.slice(0, MAX_ONLY).map(({ value, items }) => [value, `${value} (${items})`]), '');
  show(byId('only-row'), kinds.length > 0);
  const words = new URLSearchParams(location.hash.slice(1));
  page.compare = words.get('compare') ?? '';
  await readAliases();
  page.compare = byId('compare').value;
  byId('new-user').addEventListener('click', newUser);
  byId('any-user').addEventListener('submit', (event) => { event.preventDefault(); become(byId('user-id').value); });
  byId('query').addEventListener('input', search);
  byId('only').addEventListener('change', () => { page.only = byId('only').value; refresh().catch(told); });
  byId('compare').addEventListener('change', () => { page.compare = byId('compare').value; keepInAddress(); other(page.turn).catch(told); });
  await (words.get('user') ? become(words.get('user')) : newUser());
  api.sampleUsers().then(({ users }) => showPeople(users, become), () => showPeople([], become));
}

async function begin() {
  try {
    await start();
    await watch();
    follow();
  } catch (problem) {
    if (!(problem instanceof api.Problem)) throw problem;
    notice(`The page can't start: ${problem.message}. It tries again.`);
    byId('dot').className = 'dot down';
    setTimeout(begin, HEALTH_EVERY_MS);
  }
}

begin();
