// The HTTP API, as any client sees it. The key, where one is needed, lives as long as the tab.

const KEY = 'rayapp-key';
const TRIES = 3;

/** What went wrong, in the server's words; `status` 0 when no server answered. */
export class Problem extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

let askForKey = null;
let asking = null;

/** `handler(wasRefused)` returns a promise of a key, empty where somebody gave none. */
export const onKeyNeeded = (handler) => { askForKey = handler; };

/** Asks once, however many calls were refused at the same time. */
async function newKey(refused) {
  asking ??= askForKey(refused).finally(() => { asking = null; });
  const key = await asking;
  if (!key) throw new Problem(401, 'the graph needs an API key');
  sessionStorage.setItem(KEY, key);
}

async function send(method, path, body) {
  const headers = {};
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers['Content-Type'] = 'application/json';
  try {
    return [await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) }), key];
  } catch {
    throw new Problem(0, 'the graph does not answer');
  }
}

async function problemOf(response) {
  try {
    return new Problem(response.status, (await response.json()).detail ?? response.statusText);
  } catch {
    return new Problem(response.status, response.status === 429 ? 'the graph is busy' : `it answered ${response.status}`);
  }
}

const pause = (milliseconds) => new Promise((resolve) => { setTimeout(resolve, milliseconds); });

/** One call. Asks for a key on 401; on 429 and 503 waits as long as the answer says, and tries again. */
async function call(method, path, body) {
  for (let tries = 1; ; tries += 1) {
    const [response, key] = await send(method, path, body);
    if (response.ok) return response.json();
    if (response.status === 401) {
      if (sessionStorage.getItem(KEY) === key) await newKey(key !== null);
    } else if ((response.status === 429 || response.status === 503) && tries < TRIES) {
      await pause(1000 * Math.min(Number(response.headers.get('Retry-After')) || 1, 5));
    } else {
      throw await problemOf(response);
    }
  }
}

const get = (path) => call('GET', path);
const post = (path, body) => call('POST', path, body);
const part = encodeURIComponent;

/** An id nobody else makes. `crypto.randomUUID` is missing where a page came over plain HTTP from another machine. */
export const randomId = () => [...crypto.getRandomValues(new Uint8Array(8))].map((b) => b.toString(16).padStart(2, '0')).join('');

export const domain = () => get('/v1/domain');
export const models = () => get('/v1/models');
export const sampleUsers = () => get('/v1/users:sample');
export const sequence = (userId, limit) => get(`/v1/users/${part(userId)}/sequence?limit=${limit}`);
export const search = (query, limit) => get(`/v1/items?query=${part(query)}&limit=${limit}`);
export const feed = (body) => post('/v1/recommendations', body);
export const rank = (body) => post('/v1/rank', body);

/** Sent again under one id, an action counts once. */
export async function act(userId, itemId, action, requestId) {
  const event = { event_id: randomId(), user_id: userId, item_id: itemId, action, timestamp_ms: Date.now() };
  if (requestId) event.request_id = requestId;
  const answer = await post('/v1/events', event);
  if (answer.rejected.length) throw new Problem(422, answer.rejected[0].message);
}

let explains = true;

/** Which past actions brought these items here; null from a graph that can't tell. */
export async function explain(userId, itemIds) {
  if (!explains) return null;
  try {
    return await post('/v1/explain', { user_id: userId, item_ids: itemIds });
  } catch (problem) {
    if (problem.status !== 404 && problem.status !== 405) throw problem;
    explains = false;
    return null;
  }
}

/** `{up, modelVersion, short}`: whether feeds are answered, by what, and what the graph is short of. Asks no key. */
export async function health() {
  try {
    const [response] = await send('GET', '/health/ready');
    const body = await response.json();
    if (!response.ok) return { up: false, short: body.detail };
    const short = ['store', 'candidates', 'ranker'].filter((stage) => body[stage] !== 'ok').map((stage) => `${stage}: ${body[stage]}`);
    return { up: true, modelVersion: body.model_version, short: short.join(', ') };
  } catch {
    return { up: false, short: 'the graph does not answer' };
  }
}
