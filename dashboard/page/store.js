// What is known of each shown series: its last readings, each once, in order of time.

const KEPT = 240; // readings of a series
const LEAST_STALE_SEC = 60;
const STALE_GAPS = 6; // usual gaps without a reading after which a series is stale

export const keyOf = (row) => `${encodeURIComponent(row.device_id)}/${encodeURIComponent(row.sensor_type)}`;

export class Store {
  #series = new Map();
  #ahead = 0; // the server's clock less ours, in ms

  now() {
    return Date.now() + this.#ahead;
  }

  setClock(serverTime) {
    this.#ahead = Date.parse(serverTime) - Date.now();
  }

  get(key) {
    return this.#series.get(key);
  }

  // Keep these series and no others.
  keep(keys) {
    const wanted = new Set(keys);
    for (const key of this.#series.keys()) if (!wanted.has(key)) this.#series.delete(key);
  }

  // Returns the key of its series.
  add(row) {
    const key = keyOf(row);
    let one = this.#series.get(key);
    if (!one) this.#series.set(key, (one = { points: [], unit: null }));
    if (row.unit) one.unit = row.unit;
    const point = { ms: Date.parse(row.timestamp), at: row.timestamp, value: row.value, text: row.value_text };
    const { points } = one;
    let at = points.length;
    while (at > 0 && points[at - 1].ms > point.ms) at -= 1;
    for (let same = at - 1; same >= 0 && points[same].ms === point.ms; same -= 1) {
      if (points[same].at === point.at && points[same].value === point.value && points[same].text === point.text) return key;
    }
    points.splice(at, 0, point);
    if (points.length > KEPT) points.splice(0, points.length - KEPT);
    return key;
  }

  newest(key) {
    return this.#series.get(key)?.points.at(-1);
  }

  ageSec(key) {
    const newest = this.newest(key);
    return newest ? (this.now() - newest.ms) / 1000 : Infinity;
  }

  // Whether a series has been silent for much longer than it usually is.
  isStale(key) {
    const points = this.#series.get(key)?.points ?? [];
    if (!points.length) return true;
    const gaps = points.slice(1).map((point, index) => point.ms - points[index].ms).sort((a, b) => a - b);
    const usual = gaps.length ? gaps[gaps.length >> 1] / 1000 : LEAST_STALE_SEC;
    return this.ageSec(key) > Math.max(LEAST_STALE_SEC, STALE_GAPS * usual);
  }

  // From when on a page that was cut off must hear again: the newest reading of the series that is furthest
  // behind, of those that are not silent anyway.
  reached() {
    let oldest = null;
    for (const key of this.#series.keys()) {
      const newest = this.newest(key);
      if (newest && !this.isStale(key) && (!oldest || newest.ms < oldest.ms)) oldest = newest;
    }
    return oldest?.at ?? null;
  }
}
