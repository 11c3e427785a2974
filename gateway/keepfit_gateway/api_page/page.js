"use strict";
// Starts Swagger UI. A file of its own, because the policy of the page permits no script inside it.
SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  presets: [SwaggerUIBundle.presets.apis],
  layout: "BaseLayout",
  deepLinking: true,
  displayRequestDuration: true,
  // Nothing is stored: a key is forgotten with the page. Nothing is sent elsewhere: the document is not validated by a server.
  persistAuthorization: false,
  validatorUrl: null,
  queryConfigEnabled: false,
});
