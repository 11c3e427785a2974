/** The version of this package, which is sent as part of `User-Agent`. */
export const VERSION = "0.3.0";
