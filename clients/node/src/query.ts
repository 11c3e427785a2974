// Queries of addresses.

export type QueryValue = string | number | boolean | undefined;
/** Names and values, in order; undefined values are left out. */
export type Query = readonly (readonly [string, QueryValue])[];

/** Return a query with its question mark, percent-encoded; "" if it is empty. */
export function queryText(query: Query): string {
  const pairs = query.filter(([, value]) => value !== undefined);
  if (pairs.length === 0) return "";
  return `?${pairs.map(([name, value]) => `${encodeURIComponent(name)}=${encodeURIComponent(String(value))}`).join("&")}`;
}
