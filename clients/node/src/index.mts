// The same classes for `import` and for `require`, so that `instanceof` holds in a process that uses both.
export * from "./index.js";
