// Queries of addresses.

type Scalar = string | number | boolean | Date;
/** A value, or several of one name; a Date is sent in ISO 8601. */
export type QueryValue = Scalar | readonly Scalar[] | undefined;
/** Names and values, in order; undefined values are left out. */
export type Query = readonly (readonly [string, QueryValue])[];

/** Return a query with its question mark, percent-encoded; "" if it is empty. */
export function queryText(query: Query): string {
  const pairs = query.flatMap(([name, value]) => (Array.isArray(value) ? (value as readonly Scalar[]) : [value as Scalar | undefined])
    .filter((one) => one !== undefined)
    .map((one) => `${encodeURIComponent(name)}=${encodeURIComponent(one instanceof Date ? one.toISOString() : String(one))}`));
  return pairs.length === 0 ? "" : `?${pairs.join("&")}`;
}
