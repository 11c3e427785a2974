// The calls of the service as an OpenAPI document, which GET /api shows as a page.

import { FIELDS, PAIR, SIZED_VOTE, VOTE } from './fields.js';

const objectOf = (names, required = names) => ({
  type: 'object',
  required,
  properties: Object.fromEntries(names.map((name) => [name, { ...FIELDS[name].schema, description: FIELDS[name].description }])),
});

const body = (names) => ({ required: true, content: { 'application/json': { schema: objectOf(names) } } });
const json = (description, schema) => ({ description, content: { 'application/json': { schema } } });
const problem = (description) => ({ description, content: { 'application/problem+json': { schema: { $ref: '#/components/schemas/Problem' } } } });

const number = { type: 'number' };
const integer = { type: 'integer' };
const nullable = { type: ['number', 'null'] };

const vote = (names, summary) => ({
  post: {
    summary,
    description: 'The vote is on disk before the answer. keepfit learns it once. The same vote again changes nothing.',
    requestBody: body(names),
    responses: {
      201: json('The stored vote.', { ...objectOf(['user', ...PAIR, 'size', 'fit'], names), properties: { id: { type: 'string' }, ...objectOf(SIZED_VOTE).properties } }),
      200: json('The same vote, which was stored before.', objectOf(SIZED_VOTE, names)),
      400: problem('A field is missing, or the body is not JSON.'),
      409: problem('The user has voted on this pair, with another fit or size.'),
      413: problem('The body is too large.'),
      422: problem('A field has an invalid value.'),
    },
  },
});

export const DOCUMENT = {
  openapi: '3.1.0',
  info: { title: 'Sneakers', version: '0.3.0', description: 'How sneakers fit, from votes, and from a model for pairs without votes.' },
  paths: {
    '/true/add': vote(VOTE, 'Vote on how a pair fits'),
    '/true/addsize': vote(SIZED_VOTE, 'Vote on how a pair fits, with its size'),
    '/true/single': {
      post: {
        summary: 'Ask how a pair fits',
        description: 'A pair with votes is answered with their average, without keepfit; one without votes by the model.',
        requestBody: body(PAIR),
        responses: {
          200: json('The answer, and where it comes from.', {
            type: 'object',
            required: ['trueSize', 'votes', 'source'],
            properties: { trueSize: number, votes: integer, source: { enum: ['votes', 'model'] }, version: integer },
          }),
          400: problem('A field is missing, or the body is not JSON.'),
          422: problem('A field has an invalid value.'),
          502: problem('keepfit refuses the pair.'),
          503: problem('The pair has no votes, and keepfit is unavailable.'),
        },
      },
    },
    '/true/score': {
      get: {
        summary: 'Show how good the estimates are',
        description: 'mean_absolute_error is how far the estimates were from the votes that came next, beside a baseline: the mean of all votes. model is null while keepfit is unavailable.',
        responses: {
          200: json('Numbers of votes, and of the model.', {
            type: 'object',
            properties: {
              votes: integer, users: integer, pairs: integer, waiting: { ...integer, description: 'Votes that keepfit has not accepted yet.' },
              model: {
                type: ['object', 'null'],
                properties: { hash: { type: 'string' }, version: integer, rows_seen: integer, mean_absolute_error: nullable, baseline_mean_absolute_error: nullable },
              },
            },
          }),
        },
      },
    },
    '/healthz': { get: { summary: 'Check that the service runs', responses: { 200: json('It runs.', { type: 'object', properties: { status: { const: 'ok' }, votes: integer, waiting: integer } }) } } },
  },
  components: {
    schemas: {
      Problem: {
        type: 'object',
        properties: {
          type: { type: 'string' }, title: { type: 'string' }, status: integer, detail: { type: 'string' },
          errors: { type: 'array', items: { type: 'object', properties: { field: { type: 'string' }, detail: { type: 'string' } } } },
        },
      },
    },
  },
};
