// Shows /api.json as a page.

const openapi = await (await fetch('/api.json')).json();
const calls = document.querySelector('#calls');

function add(parent, tag, text) {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  parent.append(element);
  return element;
}

function table(parent, rows) {
  const body = add(add(parent, 'table'), 'tbody');
  for (const row of rows) {
    const line = add(body, 'tr');
    for (const text of row) add(line, 'td', text);
  }
}

for (const [path, methods] of Object.entries(openapi.paths)) {
  for (const [method, { summary, description, requestBody, responses }] of Object.entries(methods)) {
    add(calls, 'h2', `${method.toUpperCase()} ${path}`);
    add(calls, 'p', `${summary}. ${description ?? ''}`);
    const fields = requestBody?.content['application/json'].schema.properties ?? {};
    table(calls, Object.entries(fields).map(([name, field]) => [name, field.type, field.description]));
    table(calls, Object.entries(responses).map(([status, answer]) => [status, answer.description]));
  }
}
