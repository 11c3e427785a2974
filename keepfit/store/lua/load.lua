-- load: read a model for predicting, state and bundle at one moment.
--
-- KEYS[1] state   hash of the model
-- KEYS[2] bundle  live bundle
--
-- returns {} if there is no such model; else {generation, version, rows_seen, digest, recipe, bundle or ''}
local state = redis.call('HMGET', KEYS[1], 'generation', 'version', 'rows_seen', 'digest', 'recipe')
if not state[1] then
  return {}
end
return {state[1], state[2], state[3], state[4], state[5], redis.call('GET', KEYS[2]) or ''}
