import keepfit = require("keepfit");

const client: keepfit.Keepfit = new keepfit.Keepfit();
client.model({ type: "shoes" }).hash satisfies string;
keepfit.hashOf({ type: "shoes" }) satisfies string;
