-- load: read a model for predicting, state and bundle in one moment.
--
-- KEYS[1] state   hash of the model
-- KEYS[2] bundle  live bundle
-- ARGV[1] known   digest of the bundle the caller holds unpickled, '' for none
--
-- returns {} where there is no such model; else {generation, version, rows_seen, digest, recipe, bundle or ''}
local state = redis.call('HMGET', KEYS[1], 'generation', 'version', 'rows_seen', 'digest', 'recipe')
if not state[1] then
  return {}
end
local bundle = ''
if state[4] ~= '' and state[4] ~= ARGV[1] then
  bundle = redis.call('GET', KEYS[2]) or ''
end
return {state[1], state[2], state[3], state[4], state[5], bundle}
